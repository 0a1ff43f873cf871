"""The largest value of every diagnosed variable over a forecast, in one NetCDF file."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from omegaconf import DictConfig, OmegaConf

from distinf import (
    ConfigError,
    ForecastRun,
    as_forecast,
    check_run,
    current_session,
    load_diagnostics,
    load_forecast,
    plan_outputs,
    read_run,
    rollout,
)


def check(cfg: DictConfig) -> None:
    """Refuse what cannot work, before any model loads."""
    run = typed(cfg)
    if len(run.times) > 1 or run.members is not None:
        raise ConfigError("recipe=largest takes one initial time, and no ensemble")
    check_run(run)


def largest(cfg: DictConfig) -> None:
    """Forecast on rank 0, diagnose every step on the workers, keep the largest values."""
    run, device = typed(cfg), current_session().device
    found: dict[str, np.ndarray] = {}
    with load_diagnostics(run) as loading:  # on the workers, while this rank loads its own models
        forecast = load_forecast(run)
        chains = loading.result()
        outputs = plan_outputs(run, forecast.prognostic, chains)
        states = rollout(forecast.prognostic, forecast.data, run.times[0], run.nsteps, device)
        for result in diagnosed(states, chains):
            for name, (y, _) in result.items():
                found[name] = np.maximum(found.get(name, y.numpy()), y.numpy())
    save(run, {name: grid for each in outputs for name, grid in each.grids.items()}, found)


def diagnosed(states: Iterator[Any], chains: list[Any], ahead: int = 16) -> Iterator[Any]:
    """Yield every result, in order; at most ``ahead`` of them wait."""
    pending: deque[Any] = deque()
    for x, coords in states:
        for chain in chains:
            pending.append(chain.submit(x, coords))  # waits while all workers are busy
            if len(pending) > ahead:
                yield pending.popleft().result()
    for future in pending:
        yield future.result()


def save(run: ForecastRun, grids: dict[str, Any], found: dict[str, np.ndarray]) -> None:
    """Write the fields of all diagnostics to a NetCDF file."""
    fields = xr.Dataset()
    for name, values in found.items():
        array = xr.DataArray(values, grids[name], list(grids[name]))
        fields.update(array.squeeze(["time", "lead_time"], drop=True).to_dataset("variable"))
    fields.to_netcdf(run.output_path)
    print(f"Results: {run.output_path}")


def typed(cfg: DictConfig) -> ForecastRun:
    """Let Hydra's config stop here."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return as_forecast(read_run(plain))
