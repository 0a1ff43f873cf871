"""The forecasts of one of several drivers: a resident model that steps when it is asked to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import torch

from distinf.coords import State
from distinf.forecast.batching import Block, tasks
from distinf.forecast.initial import Perturb
from distinf.forecast.prognostic import Forecasts
from distinf.forecast.restart import RestartStates, Start
from distinf.report import Event
from distinf.store import WriterTicket, reach
from distinf.transport import Kept

_WAIT_SECONDS = 0.1


@dataclass(frozen=True)
class Models:
    """What forecasts: the prognostic, its data source, and what perturbs a member (or None)."""

    prognostic: Any
    data: Any
    perturbation: Perturb | None


@dataclass(frozen=True)
class Piece:
    """A block for one driver, and the first of its steps that the store lacks."""

    block: Block
    reached: int


class Stepper:
    """Forecasts the blocks that it is given, one step at a time.

    ``load`` returns the models on a device; ``seed`` is the run's.
    """

    def __init__(self, load: Callable[[torch.device], Models], seed: int) -> None:
        self._load, self._seed = load, seed
        self._restart: RestartStates | None = None
        self._reached: dict[str, int] = {}
        self._starts: dict[str, Future[Start]] = {}
        self._events: list[Event] = []
        self._turn = threading.Lock()

    def to(self, device: torch.device) -> Stepper:
        """Load the models on a device."""
        self._device = torch.device(device)
        self._models = self._load(self._device)
        self._forecasts = self._make()
        return self

    def save_to(self, ticket: WriterTicket, every: int) -> None:
        """From now on, save a state in a store after so many steps, and begin from those there."""
        self._restart = RestartStates(
            reach(ticket), every, lambda block: self._reached.get(_name(block), 0)
        )
        self._forecasts = self._make()

    def _make(self) -> Forecasts:
        own = self._models
        return Forecasts(
            own.prognostic,
            own.data,
            self._device,
            self._record,
            own.perturbation,
            self._seed,
            self._restart,
        )

    def _record(self, event: Event) -> None:
        with self._turn:
            self._events.append(event)

    @torch.inference_mode(False)
    def begin(self, piece: Piece, upcoming: Piece | None = None) -> bool:
        """Begin a block; read the initial condition of the ``upcoming`` one in the meantime.

        Returns False soon if its own is still being read: diagnostics here must not wait for that.
        """
        start = self._start(piece)
        if not wait([start], _WAIT_SECONDS).done:
            return False
        self._reached = {_name(piece.block): piece.reached}
        if upcoming is not None:
            self._start(upcoming)
        self._block = piece.block
        self._steps: Iterator[State] = self._forecasts.steps(piece.block, start.result())
        del self._starts[_name(piece.block)]
        return True

    def _start(self, piece: Piece) -> Future[Start]:
        name = _name(piece.block)
        if name not in self._starts:
            self._reached[name] = piece.reached
            self._starts[name] = self._forecasts.start(piece.block)
        return self._starts[name]

    @torch.inference_mode(False)
    def step(self, reached: int) -> Kept:
        """Return the states of the next step, one for each time and member, and new events.

        None instead of the states after the last step. The states stay on this rank. ``reached`` is
        the first step of the block that the store lacks.
        """
        self._reached[_name(self._block)] = reached
        following = next(self._steps, None)
        states = None if following is None else list(tasks(*following))
        with self._turn:
            events, self._events = self._events, []
        return Kept((states, events))


def _name(block: Block) -> str:
    member = "" if block.members is None else f" {block.members[0]}"
    return f"{block.times[0]}{member}"
