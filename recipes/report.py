"""A page about a run that is there: maps, series, its timeline, what limited it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import distinf
from distinf import ConfigError, Run
from recipes.shared import checks
from recipes.shared.output_path import run_folder

__all__ = ["RANKS", "check", "read", "report"]

RANKS = 1  # nothing is computed


def read(cfg: DictConfig) -> Run:
    """Read a config; keys that it lacks are those of models and data, which are not loaded."""
    known = cfg.copy()
    for key in OmegaConf.missing_keys(known):
        OmegaConf.update(known, key, None)
    return checks.read_run(known)


def check(cfg: DictConfig) -> None:
    """Refuse a file of events that is not there."""
    events = read(cfg).report.events
    if events is not None and not Path(events).is_file():
        raise ConfigError(f"report.events={events}: there is no such file")


def report(cfg: DictConfig) -> None:
    """Write ``report.html`` about the store at ``parameters.output_path`` into the run's folder.

    Parameters
    ----------
    cfg : DictConfig
        The config, checked.
    """
    run = read(cfg)
    file = run.report.events or newest_events(run.output_path, Path(run_folder()))
    record = None
    if file is not None:
        print(f"Events: {file}")
        record = distinf.read_record(run.output_path, distinf.SavedEvents(file))
    page = Path(run_folder()) / "report.html"
    distinf.write_report(run.output_path, page, run.report, record)
    print(f"Report: {page}")


def newest_events(store: str, folder: Path) -> str | None:
    """Find the events of the newest run that wrote a store, among the folders of runs.

    ``folder`` is that of one run; the others lie beside it, or beside its day's folder.
    """
    root = folder.parents[1]
    files = [*root.glob("*/events.jsonl"), *root.glob("*/*/events.jsonl")]
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        if _wrote(file.parent / ".hydra", store):
            return str(file)
    return None


def _wrote(hydra: Path, store: str) -> bool:
    """Whether the run whose config Hydra keeps here wrote a store."""
    try:
        config: Any = OmegaConf.load(hydra / "config.yaml")
        own: Any = OmegaConf.load(hydra / "hydra.yaml")
        path = str(OmegaConf.select(config, "parameters.output_path"))
        folder = str(own.hydra.runtime.cwd)
        swept = str(own.hydra.mode).endswith("MULTIRUN")
    except Exception:  # the folder of something else
        return False
    if "://" in path or "://" in store:
        return path.rstrip("/") == store.rstrip("/")
    home = str(hydra.parent) if swept else folder
    return os.path.realpath(os.path.join(home, path)) == os.path.realpath(store)
