"""Fetch what a run will need, without running it: for login nodes."""

from __future__ import annotations

import numpy as np
from omegaconf import DictConfig

from distinf import as_forecast, load_section
from recipes.shared.checks import check_models, read_run


def check(cfg: DictConfig) -> None:
    """Refuse what cannot work, before anything is fetched."""
    as_forecast(read_run(cfg))
    check_models(cfg)


def fetch(cfg: DictConfig) -> None:
    """Load every model once on the CPU and read the initial conditions of every time.

    Packages and data end up in Earth2Studio's cache, so that the same command without
    ``recipe=fetch`` needs no network on a node that shares it.

    Parameters
    ----------
    cfg : DictConfig
        The config, checked.
    """
    from earth2studio.data import fetch_data

    run = as_forecast(read_run(cfg))
    for name, settings in run.diagnostics.items():
        load_section(settings, f"diagnostic.{name}")
        print(f"Fetched diagnostic {name}")
    wanted = load_section(run.prognostic, "prognostic").input_coords()
    print("Fetched prognostic")
    data = load_section(run.data, "data")
    for time in run.times:
        fetch_data(
            source=data,
            time=np.array([time]),
            variable=wanted["variable"],
            lead_time=wanted["lead_time"],
        )
        print(f"Fetched data of {np.datetime_as_string(time, unit='m')}")
