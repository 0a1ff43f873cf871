"""Where a recipe's files go."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

__all__ = ["output_path"]


def output_path(cfg: DictConfig) -> str:
    """Path or URL of the run's store.

    Under ``--multirun`` each run needs one of its own: a relative path lies in the run's own
    folder, unless it is made of other keys, such as ``run_${parameters.nsteps}.zarr``.
    """
    path = str(cfg.parameters.output_path)
    swept = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    own = OmegaConf.is_interpolation(cfg.parameters, "output_path")
    if not swept or own or "://" in path or Path(path).is_absolute():
        return path
    return str(Path(HydraConfig.get().runtime.output_dir) / path)
