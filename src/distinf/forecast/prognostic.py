"""The prognostic's side: from initial conditions to a sequence of states."""

from __future__ import annotations

import logging
import time as clock
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch

from distinf.background import in_background
from distinf.coords import check_covered, plan
from distinf.errors import ConfigError
from distinf.forecast.batching import Block, Coords, State, tasks
from distinf.forecast.restart import RestartStates, Saved
from distinf.forecast.step_clock import StepClock
from distinf.loading import unreachable, unread
from distinf.report import Event, Events
from distinf.seeds import seed_all, set_generators, task_seed

log = logging.getLogger("distinf")

__all__ = [
    "check_initial",
    "forecasts",
    "lead_times",
    "on_own_grid",
    "rollout",
    "step_coords",
]

_PROGNOSTIC, _DATA = "the prognostic", "the data"  # in errors

Perturb = Callable[[torch.Tensor, Coords], State]


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


def step_coords(
    prognostic: Any, time: np.datetime64, lead_time: Any = None, member: int | None = None
) -> Coords:
    """Coordinates of one state of a forecast, as :func:`rollout` yields it.

    Parameters
    ----------
    prognostic : PrognosticModel
        An Earth2Studio prognostic.
    time : np.datetime64
        Initial time.
    lead_time : np.timedelta64 | None, optional
        By default None: that of the first step.
    member : int | None, optional
        Member of an ensemble, by default None: no dimension ``ensemble``.

    Returns
    -------
    Coords
        ``time`` and ``lead_time`` of one element, and the model's ``variable`` and grid.
    """
    own = prognostic.output_coords(prognostic.input_coords())
    coords: Coords = OrderedDict()
    if member is not None:
        coords["ensemble"] = np.array([member])
    coords["time"] = np.array([time])
    coords.update((key, value) for key, value in own.items() if key not in ("batch", "time"))
    if lead_time is not None:
        coords["lead_time"] = np.array([lead_time])
    return coords


def rollout(
    prognostic: Any,
    data: Any,
    time: np.datetime64,
    nsteps: int,
    device: torch.device | str = "cpu",
    events: Events | None = None,
) -> Iterator[State]:
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
    yield from forecasts(prognostic, data, [Block(np.array([time]), None, nsteps)], device, events)


def forecasts(
    prognostic: Any,
    data: Any,
    todo: Sequence[Block],
    device: torch.device | str = "cpu",
    events: Events | None = None,
    perturbation: Perturb | None = None,
    seed: int | None = None,
    restart: RestartStates | None = None,
) -> Iterator[State]:
    """Forecast one block after the other, without a gap between them.

    The initial condition of the next block is read while the present one is forecast.

    Parameters
    ----------
    prognostic, data, device, events
        As in :func:`rollout`.
    todo : Sequence[Block]
        The blocks.
    perturbation : Callable | None, optional
        Perturbs the initial condition of one member, by default None: see
        `distinf.forecast.ensemble.perturb`.
    seed : int | None, optional
        The run's seed, for a prognostic that draws random numbers: they begin anew with each block.
        By default None: it draws as it pleases.
    restart : RestartStates | None, optional
        Where states are saved, and from which a block begins if one of its states is there, by
        default None: every block begins with its initial condition.

    Raises
    ------
    ConfigError
        If the data source cannot be reached.

    Yields
    ------
    tuple[torch.Tensor, Coords]
        States [(ensemble,) time, lead_time=1, variable, ...] and their coords.
    """
    wanted = prognostic.input_coords()
    method = getattr(prognostic, "interp_method", None)

    def begin(block: Block) -> State | Saved:
        if restart is not None and (saved := restart.newest(block)) is not None:
            return saved
        return _read(data, block.times, wanted, method, device, events)

    upcoming = in_background(partial(begin, todo[0]), "distinf-read") if todo else None
    for number, block in enumerate(todo):
        assert upcoming is not None
        first = upcoming.result()
        upcoming = None
        if number + 1 < len(todo):
            upcoming = in_background(partial(begin, todo[number + 1]), "distinf-read")
        start = clock.time()
        if not isinstance(first, Saved) and block.members is not None:
            first = _members(*first, block.members, perturbation)
        yield from _steps(prognostic, first, block, events, seed, start, device, restart)
        if restart is not None:
            restart.finish(block)


def _steps(
    prognostic: Any,
    first: State | Saved,
    block: Block,
    events: Events | None,
    seed: int | None,
    start: float,
    device: torch.device | str,
    restart: RestartStates | None,
) -> Iterator[State]:
    member = None if block.members is None else int(block.members[0])
    if seed is not None:
        draws = task_seed(seed, "prognostic", block.times[0], None, member)
        seed_all(draws)
        if callable(getattr(prognostic, "set_rng", None)):
            prognostic.set_rng(seed=draws)
    label = str(np.datetime_as_string(block.times[0], unit="m"))
    label += "" if member is None else f" member {member}"
    more = len(block.times) * (1 if block.members is None else len(block.members)) - 1
    label += f" and {more} more" if more else ""
    if isinstance(first, Saved):
        log.info("%s: goes on from its saved step %d", label, first.step)
        if seed is not None:
            set_generators(first.generators, device)
        begun, x, coords = first.step, first.x.to(device), first.coords
    else:
        begun, (x, coords) = 0, first
    states = prognostic.create_iterator(x, coords)
    steps = StepClock(events)
    try:
        for step in range(begun, block.nsteps + 1):
            x, coords = next(states)
            if restart is not None and step > begun:
                restart.offer(block, step, x, coords)
            steps.stepped(f"{label} step {step}", start, x)
            yield x, coords
            start = clock.time()
    finally:
        steps.close()


def _read(
    data: Any,
    times: np.ndarray,
    wanted: Coords,
    method: str | None,
    device: torch.device | str,
    events: Events | None,
) -> State:
    """Read initial conditions [time, lead_time, variable, ...] on the prognostic's grid."""
    from earth2studio.data import fetch_data

    regrid = {}
    if method is not None:
        regrid = {"interp_to": wanted, "interp_method": method}
        data = _covering(data, wanted)
    start = clock.time()
    try:
        x, coords = fetch_data(
            source=data,
            time=times,
            variable=wanted["variable"],
            lead_time=wanted["lead_time"],
            device=device,
            **regrid,
        )
    except Exception as error:
        if (why := unreachable(error)) is None:
            raise
        raise ConfigError(unread(type(data).__name__, why)) from error
    x, coords = plan(coords, wanted, _PROGNOSTIC, _DATA)(x, coords)
    if events is not None:
        label = str(np.datetime_as_string(times[0], unit="m"))
        events.record(Event("read", label, 0, start, clock.time()))
    return x, coords


def check_initial(prognostic: Any, data: Any) -> None:
    """Refuse data on a grid from which a prognostic cannot start, where both tell their grids.

    Parameters
    ----------
    prognostic : PrognosticModel
        An Earth2Studio prognostic.
    data : DataSource | ForecastSource
        A data source; of one that has ``grid``, a mapping with ``lat`` and ``lon``, it is checked.

    Raises
    ------
    ConfigError
        Names both grids.
    """
    grid = getattr(data, "grid", None)
    if grid is None:
        return
    wanted = prognostic.input_coords()
    if getattr(prognostic, "interp_method", None) is not None:
        check_covered(grid, wanted["_lat"], wanted["_lon"], _PROGNOSTIC, _DATA)
        return
    plan(grid, {key: wanted[key] for key in grid if key in wanted}, _PROGNOSTIC, _DATA)


def on_own_grid(prognostic: Any, data: Any) -> Any:
    """Wrap a data source, for those who read it beside the forecast, such as perturbations.

    Parameters
    ----------
    prognostic : PrognosticModel
        An Earth2Studio prognostic.
    data : DataSource | ForecastSource
        A data source.

    Returns
    -------
    DataSource | ForecastSource
        Called as ``data``, it gives the same on the prognostic's grid, selected as the initial
        conditions are, or raises a `ConfigError` that names both grids.
    """
    wanted = prognostic.input_coords()

    def select(array: Any) -> Any:
        own = OrderedDict((str(dim), array[dim].values) for dim in array.dims)
        cut = plan(own, {k: v for k, v in wanted.items() if k in own}, _PROGNOSTIC, _DATA)
        for dim, index in cut.indices.items():
            array = array.isel({array.dims[dim]: np.arange(array.shape[dim])[index]})
        return array.assign_coords(cut.coords)

    return _wrapped(data, select)


def _covering(data: Any, wanted: Coords) -> Any:
    """Wrap a data source: what it reads must surround the grid to which it is interpolated."""

    def check(array: Any) -> Any:
        lat, lon = ("lat", "lon") if "lat" in array.coords else ("_lat", "_lon")
        grid = {"lat": array[lat].values, "lon": array[lon].values}
        check_covered(grid, wanted["_lat"], wanted["_lon"], _PROGNOSTIC, _DATA)
        return array

    return _wrapped(data, check)


def _wrapped(data: Any, change: Callable[[Any], Any]) -> Any:
    """Return a source of the same kind that changes what a data source gives."""
    # Earth2Studio tells the kinds apart by the signature of `__call__`; a function has none there.
    forecast = "lead_time" in signature(data.__call__).parameters
    return (_ChangedForecast if forecast else _Changed)(data, change)


@dataclass(frozen=True)
class _Changed:
    data: Any
    change: Callable[[Any], Any]

    def __call__(self, time: Any, variable: Any) -> Any:
        return self.change(self.data(time, variable))


@dataclass(frozen=True)
class _ChangedForecast:
    data: Any
    change: Callable[[Any], Any]

    def __call__(self, time: Any, lead_time: Any, variable: Any) -> Any:
        return self.change(self.data(time, lead_time, variable))


def _members(
    x: torch.Tensor, coords: Coords, members: np.ndarray, perturbation: Perturb | None
) -> State:
    """Repeat an initial condition for each member, perturbed one date and member at a time."""
    repeated = x.unsqueeze(0).repeat(len(members), *([1] * x.ndim))
    ensemble: Coords = OrderedDict(ensemble=members, **coords)
    if perturbation is not None:
        for part, own in tasks(repeated, ensemble):
            part.copy_(perturbation(part.clone(), own)[0])
    return repeated, ensemble
