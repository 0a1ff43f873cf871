"""Where a recipe's files go."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from distinf import ConfigError

__all__ = [
    "check_own",
    "is_swept",
    "netcdf_path",
    "output_path",
    "own_path",
    "repeated_places",
    "run_folder",
]

# The number of the run that writes somewhere, by its sweep and the path.
_written: dict[tuple[str, str], int] = {}


def output_path(cfg: DictConfig) -> str:
    """Path or URL of the run's store.

    Under ``--multirun`` each run needs one of its own: a relative path lies in the run's own
    folder, unless it is made of other keys, such as ``run_${parameters.nsteps}.zarr``.
    """
    return _place(cfg.parameters, "output_path")


def netcdf_path(cfg: DictConfig) -> str | None:
    """Path of the run's NetCDF file, by the same rule; None if none is wanted."""
    netcdf = OmegaConf.select(cfg, "output.netcdf")
    return None if netcdf is None else _place(cfg.output, "netcdf")


def own_path(path: str) -> str:
    """Return a path; under ``--multirun`` a relative one in the run's own folder."""
    if not is_swept() or "://" in path or Path(path).is_absolute():
        return path
    return str(Path(run_folder()) / path)


def run_folder() -> str:
    """Folder in which Hydra keeps this run's log and config."""
    return str(HydraConfig.get().runtime.output_dir)


def repeated_places(cfg: DictConfig) -> list[str]:
    """Return the overrides with which a sweep's run, started alone, writes where the sweep does."""
    if not is_swept():
        return []
    places = {"hydra.run.dir": run_folder(), "parameters.output_path": output_path(cfg)}
    if (netcdf := netcdf_path(cfg)) is not None:
        places["output.netcdf"] = netcdf
    return ["hydra.mode=RUN", *(f"++{key}={_quoted(path)}" for key, path in places.items())]


def check_own(cfg: DictConfig) -> None:
    """Refuse a path that an earlier run of the same sweep writes to, unless it is continued."""
    if not is_swept() or OmegaConf.select(cfg, "output.mode") == "resume":
        return
    hydra = HydraConfig.get()
    outputs = {"parameters.output_path": output_path(cfg), "output.netcdf": netcdf_path(cfg)}
    for key, path in outputs.items():
        if path is None:
            continue
        where = path.rstrip("/") if "://" in path else os.path.realpath(path)
        first = _written.setdefault((hydra.sweep.dir, where), hydra.job.num)
        if first != hydra.job.num:
            raise ConfigError(
                f"{key}={path} is written by run {first} of this sweep, too: give a relative path, "
                "or make it of the keys that differ, such as /results/${parameters.nsteps}.zarr"
            )


def is_swept() -> bool:
    """Whether this is one run of a sweep (``--multirun``)."""
    return bool(HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def _quoted(text: str) -> str:
    """Quote a value for Hydra's grammar, in which backslashes escape only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (m[2] and "\\'"), text) + "'"


def _place(section: DictConfig, key: str) -> str:
    path = str(section[key])
    return path if OmegaConf.is_interpolation(section, key) else own_path(path)
