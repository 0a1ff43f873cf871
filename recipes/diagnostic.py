"""Forecast on the driver, diagnose on the workers, gather into one store."""

from __future__ import annotations

from omegaconf import DictConfig

from distinf import load_diagnostics, load_forecast, open_store, plan_outputs, print_report
from recipes.shared.checks import check, read_run

__all__ = ["check", "diagnostic"]


def diagnostic(cfg: DictConfig) -> None:
    """Forecast on rank 0, diagnose every step on the workers, store everything.

    Parameters
    ----------
    cfg : DictConfig
        The config, checked.
    """
    run = read_run(cfg)
    with load_diagnostics(run) as loading:  # on the workers, while this rank loads its own models
        forecast = load_forecast(run)
        outputs = plan_outputs(run, forecast.prognostic, loading.result())
        with open_store(run, forecast, outputs) as store:
            for x, coords in forecast.states(store):
                for output in outputs:
                    if missing := output.missing_in(store, coords):
                        result = output.submit(x, coords)
                        for name in missing:
                            store.write(name, result)
    print_report(run, store)
