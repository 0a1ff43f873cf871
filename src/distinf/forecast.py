"""The prognostic's side: from initial conditions to a sequence of states."""

from __future__ import annotations

import time as clock
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from distinf.errors import ConfigError
from distinf.progress import Event, Events
from distinf.reach import unreachable, unread
from distinf.selection import plan

__all__ = ["lead_times", "rollout", "step_coords"]

Coords = OrderedDict[str, np.ndarray]


def lead_times(prognostic: Any, nsteps: int) -> np.ndarray:
    """Lead times of a forecast, the initial state's included.

    Parameters
    ----------
    prognostic : PrognosticModel
        An Earth2Studio prognostic.
    nsteps : int
        Number of steps.

    Returns
    -------
    np.ndarray
        timedelta64[ns], [nsteps + 1].
    """
    step = prognostic.output_coords(prognostic.input_coords())["lead_time"]
    return np.concatenate([step * i for i in range(nsteps + 1)]).astype("timedelta64[ns]")


def step_coords(prognostic: Any, time: np.datetime64) -> Coords:
    """Coordinates of one state of a forecast, as :func:`rollout` yields it.

    Parameters
    ----------
    prognostic : PrognosticModel
        An Earth2Studio prognostic.
    time : np.datetime64
        Initial time.

    Returns
    -------
    Coords
        ``time`` and ``lead_time`` of one element, and the model's ``variable`` and grid.
    """
    own = prognostic.output_coords(prognostic.input_coords())
    coords: Coords = OrderedDict(time=np.array([time]))
    coords.update((key, value) for key, value in own.items() if key not in ("batch", "time"))
    return coords


def rollout(
    prognostic: Any,
    data: Any,
    time: np.datetime64,
    nsteps: int,
    device: torch.device | str = "cpu",
    events: Events | None = None,
) -> Iterator[tuple[torch.Tensor, Coords]]:
    """Forecast from one initial time.

    Parameters
    ----------
    prognostic : PrognosticModel
        An Earth2Studio prognostic, on ``device``.
    data : DataSource | ForecastSource
        An Earth2Studio data source.
    time : np.datetime64
        Initial time.
    nsteps : int
        Number of steps; the initial state comes before them.
    device : torch.device | str, optional
        Where the states are, by default the CPU.
    events : Events | None, optional
        Where each step is recorded.

    Raises
    ------
    ConfigError
        If the data source cannot be reached.

    Yields
    ------
    tuple[torch.Tensor, Coords]
        ``nsteps + 1`` states [time=1, lead_time=1, variable, ...] and their coords. The model may
        reuse a state's memory for the next one.
    """
    from earth2studio.data import fetch_data

    wanted = prognostic.input_coords()
    regrid: dict[str, Any] = {}
    if hasattr(prognostic, "interp_method"):
        regrid = {"interp_to": wanted, "interp_method": prognostic.interp_method}
    start = clock.time()
    try:
        x, coords = fetch_data(
            source=data,
            time=np.array([time]),
            variable=wanted["variable"],
            lead_time=wanted["lead_time"],
            device=device,
            **regrid,
        )
    except Exception as error:
        if (why := unreachable(error)) is None:
            raise
        raise ConfigError(unread(type(data).__name__, why)) from error
    x, coords = plan(coords, wanted, "the prognostic")(x, coords)
    states = prognostic.create_iterator(x, coords)
    for step in range(nsteps + 1):
        x, coords = next(states)
        if events is not None:
            task = f"{np.datetime_as_string(time, unit='m')} step {step}"
            events.record(Event("forecast", task, 0, start, clock.time()))
        yield x, coords
        start = clock.time()
