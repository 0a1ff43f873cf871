"""Fetch what a run will need, without running it: for login nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from distinf.diagnostics import split
from distinf.parameters import parse_times
from recipes.checks import check_models
from recipes.models import make, take_restartable


def check(cfg: DictConfig) -> None:
    """Refuse what cannot work, before anything is fetched."""
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

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    for name, settings in plain["diagnostic"].items():
        where = f"diagnostic.{name}"
        make(split(settings, where)[1], where)
        print(f"Fetched diagnostic {name}")
    take_restartable(plain["prognostic"])
    wanted = make(plain["prognostic"], "prognostic").input_coords()
    print("Fetched prognostic")
    data = make(plain["data"], "data")
    for time in parse_times(plain["parameters"]["time"]):
        fetch_data(
            source=data,
            time=np.array([time]),
            variable=wanted["variable"],
            lead_time=wanted["lead_time"],
        )
        print(f"Fetched data of {np.datetime_as_string(time, unit='m')}")
