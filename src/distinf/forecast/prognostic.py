"""Steps the prognostic: from initial conditions to a sequence of states."""

from __future__ import annotations

import dataclasses
import logging
import time as clock
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import torch

from distinf.background import Ordered, in_background
from distinf.coords import Coords, State, step_words
from distinf.forecast.batching import Block, blocks, tasks
from distinf.forecast.initial import Perturb, members_of, read
from distinf.forecast.restart import RestartStates, Start
from distinf.gpu import record_event
from distinf.report import Event, Events
from distinf.seeds import only_drawing, seed_all, seed_of, set_generators
from distinf.store import Marks

log = logging.getLogger("distinf")


def lead_times(prognostic: Any, nsteps: int) -> np.ndarray:
    """Lead times of a forecast, with that of the initial state.

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
        By default that of the first step.
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


def states(
    prognostic: Any,
    data: Any,
    cases: Block,
    marks: Marks | None = None,
    every: int = 1,
    batch: int = 1,
    **options: Any,
) -> Iterator[State]:
    """Forecast many initial times and members; yield the states of one task each.

    ``cases`` holds all of them. Cases that are complete in a store, by its ``marks``, are left out;
    others end with the last step that it lacks. ``every`` is the number of steps between two stored
    lead times; the prognostic steps ``batch`` states together. ``options`` are those of
    :func:`forecasts`. States are [(ensemble=1,) time=1, lead_time=1, variable, ...].
    """
    todo = blocks(cases, batch) if marks is None else lacking(cases, marks, every, batch)
    for x, coords in forecasts(prognostic, data, todo, **options):
        yield from tasks(x, coords)


def lacking(cases: Block, marks: Marks, every: int = 1, batch: int = 1) -> list[Block]:
    """Return the blocks of which a store lacks something, until the last step that it lacks."""
    return [
        dataclasses.replace(block, nsteps=lacks[1] * every)
        for block in blocks(cases, batch)
        if (lacks := marks.incomplete(block.times, block.members)) is not None
    ]


def forecasts(
    prognostic: Any,
    data: Any,
    todo: Sequence[Block],
    device: torch.device | str = "cpu",
    events: Events | None = None,
    **options: Any,
) -> Iterator[State]:
    """Forecast one block after the other; yield states [(ensemble,) time, lead_time=1, ...].

    The initial condition of the next block is read during the forecast of the current one.
    ``options`` are those of `Forecasts`.
    """
    record = None if events is None else events.record
    own = Forecasts(prognostic, data, device, record, **options)
    starts = map(own.start, todo)
    upcoming = next(starts, None)
    for block in todo:
        assert upcoming is not None
        start = upcoming.result()
        upcoming = next(starts, None)
        yield from own.steps(block, start)


class Forecasts:
    """The forecasts of one model.

    ``record`` is called with each event. ``perturbation`` perturbs the initial condition of one
    member, see `distinf.forecast.perturb`. With the run's ``seed``, a prognostic that draws random
    numbers is seeded for each block. ``restart`` saves states; a block begins with its newest saved
    one. A step may wait for a diagnostic that runs in this process; then ``check`` is called.
    """

    def __init__(
        self,
        prognostic: Any,
        data: Any,
        device: torch.device | str = "cpu",
        record: Callable[[Event], None] | None = None,
        perturbation: Perturb | None = None,
        seed: int | None = None,
        restart: RestartStates | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._check = check
        self._prognostic, self._data, self._device = prognostic, data, device
        self._record, self._perturbation, self._seed = record, perturbation, seed
        self._restart = restart
        self._clock = StepClock(record)

    def start(self, block: Block) -> Future[Start]:
        """Read where a block begins, in the background."""
        return in_background(partial(self._start_of, block), "distinf-read")

    def _start_of(self, block: Block) -> Start:
        if self._restart is not None and (saved := self._restart.newest(block)) is not None:
            return saved
        began = clock.time()
        x, coords = read(self._prognostic, self._data, block.times, self._device)
        if self._record is not None:
            label = step_words({"time": block.times[:1]}).strip()
            self._record(Event("read", label, 0, began, clock.time()))
        return Start(0, x, coords)

    def steps(self, block: Block, start: Start) -> Iterator[State]:
        """Forecast a block from its start; yield states [(ensemble,) time, lead_time=1, ...]."""
        device, restart = self._device, self._restart
        began = clock.time()
        x, coords = start.x.to(device), start.coords
        label = step_words(block.coords).strip()
        if start.step > 0:
            log.info("%s: continues from its saved step %d", label, start.step)
        with only_drawing(self._check):
            if start.step == 0 and block.members is not None:
                x, coords = members_of(x, coords, block.members, self._perturbation)
            if self._seed is not None:
                _seed(self._prognostic, block, self._seed)
                if start.generators is not None:
                    set_generators(start.generators, device)
            states = self._prognostic.create_iterator(x, coords)
        for step in range(start.step, block.nsteps + 1):
            with only_drawing(self._check):
                x, coords = next(states)
                if restart is not None and step > start.step:
                    restart.offer(block, step, x, coords)
            state = step_words(coords).strip()
            self._clock.stepped(f"{label} step {step}", began, x, state)
            yield x, coords
            began = clock.time()
        if restart is not None:
            restart.finish(block)


def _seed(prognostic: Any, block: Block, seed: int) -> None:
    draws = seed_of(seed, "prognostic", block.coords)
    seed_all(draws)
    if callable(getattr(prognostic, "set_rng", None)):
        prognostic.set_rng(seed=draws)


class StepClock:
    """Records each step when it has been computed, without waiting for a GPU.

    On the CPU that is when the model returns it; for a GPU another thread waits. ``marking``
    returns an event after what the calling thread has enqueued, None for the CPU.
    """

    def __init__(
        self,
        record: Callable[[Event], None] | None,
        marking: Callable[[torch.Tensor], Any] = record_event,
    ) -> None:
        self._record, self._marking = record, marking
        self._before = 0.0

    def stepped(self, label: str, start: float, x: torch.Tensor, state: str = "") -> None:
        """Record a step that the model was asked for at ``start``; returns at once.

        ``state`` names what it made as the tasks of that state do.
        """
        if self._record is None:
            return
        computed = self._marking(x)
        if computed is None:
            self._record(Event("forecast", label, 0, start, clock.time(), step=state))
        else:
            event = Event("forecast", label, 0, start, start, step=state)
            _steps.submit(partial(self._record_computed, self._record, event, computed))

    def _record_computed(
        self, record: Callable[[Event], None], asked: Event, computed: Any
    ) -> None:
        computed.synchronize()  # its error stays here: the user of the state gets it, too
        now = clock.time()
        # The model may be asked for a step while the GPU still computes the one before.
        record(dataclasses.replace(asked, start=max(asked.start, self._before), end=now))
        self._before = now


_steps = Ordered("distinf-steps")
