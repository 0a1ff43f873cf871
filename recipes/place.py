"""Where a recipe's files go."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

__all__ = ["is_swept", "netcdf_path", "output_path", "own_path", "run_folder"]


def output_path(cfg: DictConfig) -> str:
    """Path or URL of the run's store.

    Under ``--multirun`` each run needs one of its own: a relative path lies in the run's own
    folder, unless it is made of other keys, such as ``run_${parameters.nsteps}.zarr``.
    """
    return _place(cfg.parameters, "output_path")


def netcdf_path(cfg: DictConfig) -> str | None:
    """Path of the run's NetCDF file, by the same rule; None if none is wanted."""
    return None if cfg.output.netcdf is None else _place(cfg.output, "netcdf")


def own_path(path: str) -> str:
    """Return a path; under ``--multirun`` a relative one in the run's own folder."""
    if not is_swept() or "://" in path or Path(path).is_absolute():
        return path
    return str(Path(run_folder()) / path)


def is_swept() -> bool:
    """Whether this is one run of a sweep."""
    return bool(HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def run_folder() -> str:
    """Folder in which Hydra keeps this run's log and config."""
    return str(HydraConfig.get().runtime.output_dir)


def _place(section: DictConfig, key: str) -> str:
    path = str(section[key])
    return path if OmegaConf.is_interpolation(section, key) else own_path(path)
