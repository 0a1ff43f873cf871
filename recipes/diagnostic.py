"""Forecast, diagnose on the workers, gather into one store."""

from __future__ import annotations

from omegaconf import DictConfig

import distinf  # torch is imported when a name that needs it is used first
from recipes.shared.checks import check, read_run

__all__ = ["check", "diagnostic"]


def diagnostic(cfg: DictConfig) -> None:
    """Forecast, diagnose every step on the workers, store everything.

    Parameters
    ----------
    cfg : DictConfig
        The config, checked.
    """
    run = read_run(cfg)
    with distinf.load_diagnostics(
        run
    ) as loading:  # on the workers, while this rank loads its own models
        forecast = distinf.load_forecast(run)
        outputs = distinf.plan_outputs(run, forecast.prognostic, loading.result())
        with distinf.open_store(run, forecast, outputs) as store:
            for x, coords in forecast.states(store):
                for output in outputs:
                    if missing := output.missing_in(store, coords):
                        result = output.submit(x, coords)
                        for name in missing:
                            store.write(name, result)
    distinf.print_report(run, store)
