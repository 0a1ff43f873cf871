"""Diagnose states that are there already: the workers read them, the driver gathers the results."""

from __future__ import annotations

from omegaconf import DictConfig

import distinf  # torch is imported when a name that needs it is used first
from recipes.shared.checks import check_archive as check
from recipes.shared.checks import read_run

__all__ = ["archive", "check"]


def archive(cfg: DictConfig) -> None:
    """Diagnose every step of the data on the workers, store the results.

    Parameters
    ----------
    cfg : DictConfig
        The config, checked.
    """
    run = read_run(cfg)
    with distinf.load_diagnostics(run) as loading:  # on the workers, while this rank looks
        steps = distinf.open_archive(run)
        outputs = distinf.plan_outputs(run, steps, loading.result())
        with distinf.open_store(run, steps, outputs) as store:
            for coords in steps:
                for output in outputs:
                    if missing := output.missing_in(store, coords):
                        result = output.submit(coords)
                        for name in missing:
                            store.write(name, result)
    distinf.print_report(run, store)
