"""From Hydra's config to a typed run, and the checks before it starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import distinf
from distinf import ConfigError, Run, as_archive, as_forecast, check_files
from distinf import read_run as read_plain
from recipes.shared.output_path import (
    check_own,
    is_swept,
    netcdf_path,
    output_path,
    run_folder,
)

__all__ = ["CHECKOUT", "check", "check_archive", "check_models", "check_paths", "read_run"]

CHECKOUT = Path(__file__).resolve().parents[2]


def read_run(cfg: DictConfig) -> Run:
    """Read a config; refuse keys that do not exist and values that cannot be."""
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigError(f"{key} is missing: set it, {key}=...")
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    run = read_plain(plain)
    folder = Path(run_folder()) if HydraConfig.initialized() else None
    reports = run.report.at_end and (run.report.sweeps or not is_swept())
    return dataclasses.replace(
        run,
        output_path=output_path(cfg),
        output=dataclasses.replace(run.output, netcdf=netcdf_path(cfg)),
        folder=folder,
        report_file=folder / "report.html" if folder is not None and reports else None,
    )


def check(cfg: DictConfig) -> None:
    """Refuse what cannot work in a forecast, before any rank is started or model loaded."""
    as_forecast(read_run(cfg))
    _check(cfg)


def check_archive(cfg: DictConfig) -> None:
    """Refuse what cannot work with states that are read, before any rank is started."""
    as_archive(read_run(cfg))
    _check(cfg)


def _check(cfg: DictConfig) -> None:
    check_paths(cfg)
    check_models(cfg)


def check_paths(cfg: DictConfig) -> None:
    """Refuse outputs that must not be touched."""
    check_own(cfg)
    folders = {"the checkout of distinf": str(CHECKOUT)}
    if HydraConfig.initialized():
        folders["the run's own folder"] = run_folder()
    check_files(read_run(cfg), folders)


def check_models(cfg: DictConfig) -> None:
    """Refuse models and data that do not fit together, as far as no weights are needed for it."""
    distinf.check_run(read_run(cfg))  # on first use: it imports torch
