"""Several drivers: ranks that forecast a share of the initial times and members.

Rank 0 gives each driver one block after the other, and asks it for one step after the other. A
state stays on the rank that has computed it. Rank 0 hands out tasks as with one driver; the rank
that runs a task gets its state from the one that keeps it::

    rank 0: step ------> driver: forecast, keep the state --+
            coords <----                                    |
            task ------> worker: get what it needs <--------+, forward, write

If a driver is lost, others forecast its blocks again, from their saved states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import torch

from distinf.background import in_background
from distinf.coords import State
from distinf.errors import TaskError, WorkerLost, as_config_error
from distinf.farm import Farm
from distinf.forecast import (
    Block,
    Models,
    Piece,
    RestartStates,
    Stepper,
    lacking,
    reached_by,
)
from distinf.report import Pace, best_drivers, why_so_many
from distinf.run import ForecastRun
from distinf.store import ForecastStore, WriterTicket
from distinf.transport import Call

log = logging.getLogger("distinf")

_AHEAD = 2  # states of each driver that may wait to be handed out
_LOOK_UP_SECONDS, _NEAR_SECONDS = 5.0, 0.01


def driver_ranks(run: ForecastRun, ranks: int) -> list[int]:
    """Return the ranks that forecast from the start, of so many."""
    wanted = run.runtime.drivers
    return spread(1 if wanted == "auto" else min(wanted, number_of_blocks(run)), ranks)


def spread(drivers: int, ranks: int) -> list[int]:
    """Choose so many of the ranks as drivers, rank 0 first, evenly over the nodes."""
    return [i * ranks // drivers for i in range(drivers)]


def number_of_blocks(run: ForecastRun) -> int:
    """Return how many blocks of times and members a run has, of which a driver forecasts one."""
    dates, members, batch = len(run.times), run.members or 1, run.runtime.batch
    if run.members is None:
        return -(-dates // batch)
    return -(-dates // max(1, batch // members)) * -(-members // batch)


class _Owner:
    """Lives as long as somebody needs a state."""


class Drivers:
    """The ranks that forecast, as rank 0 sees them.

    Rank 0 is one of the ``ranks``, for which ``models`` are those that are loaded already. Another
    rank loads its own with ``load``, which must be importable there. With ``runtime.drivers=auto``
    all of ``world_size`` load them, and those become drivers that the pace of the run suggests.
    """

    def __init__(
        self,
        run: ForecastRun,
        farm: Farm,
        ranks: Sequence[int],
        models: Models,
        load: Callable[[torch.device], Models],
        world_size: int,
    ) -> None:
        self._world_size = world_size
        self._pace: Pace | None = None  # while the number of drivers is to be chosen
        self._obstacle = ""  # why rank 0 must forecast alone
        if any(own.workers is not None for own in run.placements.values()):
            self._obstacle = "diagnostics have workers of their own (diagnostic.<name>.workers)"
        self._run, self._farm, self._load, self._own = run, farm, load, models
        members = None if run.members is None else np.arange(run.members)
        self._cases = Block(run.times, members, run.nsteps)
        self._model = farm.new_model()
        self._changed = threading.Condition()
        self._ready: dict[int, deque[State]] = {}  # by driver; states that are to be handed out
        self._freed: defaultdict[int, deque[int]] = defaultdict(deque)
        self._todo: deque[Block] = deque()
        self._given: defaultdict[int, list[Block]] = defaultdict(list)
        self._driving: set[int] = set()
        self._error: BaseException | None = None
        self._ended = False
        self._save: tuple[WriterTicket, int] | None = None
        self._ranks = list(ranks)
        self._built: dict[int, Future[None]] = {}
        farm.expect_steps()
        if run.runtime.drivers != "auto":
            self._load_on(ranks)

    def save_to(self, ticket: WriterTicket, every: int | None) -> None:
        """Let the drivers save states in the store, after ``every`` steps (None: not at all).

        Raises `ConfigError` if a driver does not see the store, or could not load its models.
        """
        if every is not None:
            self._save = ticket, every
        if self._run.runtime.drivers == "auto":  # after the diagnostics, which must fit anyway
            self._load_on(range(self._world_size))
        for rank, built in self._built.items():
            try:
                built.result()
                if self._save is not None:
                    self._ask(rank, "save_to", *self._save)
            except TaskError as error:
                if self._run.runtime.drivers != "auto" or error.kind != "OutOfMemoryError":
                    raise as_config_error(error, f"rank {rank}: ") from None
                self._obstacle = f"the prognostic does not fit beside the diagnostics: {error}"
            except WorkerLost:
                continue  # the farm has said so

    def _load_on(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            self._built[rank] = in_background(partial(self._build, rank), "distinf-load")

    def _build(self, rank: int) -> None:
        load = (lambda device: self._own) if rank == 0 else self._load
        args = (Stepper, load, self._run.runtime.seed)
        self._ask(rank, "__build__", *args)

    def _ask(self, rank: int, method: str, *args: Any) -> Any:
        """Call the forecast of a driver, which takes as long as it takes while the rank lives."""
        task = f"the forecast on rank {rank}"
        call = Call(self._model, method, task, args)
        return self._farm.call(rank, call, in_time=False).result()

    def _is_alive(self, rank: int) -> bool:
        return rank == 0 or rank in self._farm.lives()

    def states(self, store: ForecastStore) -> Iterator[State]:
        """Forecast what a store lacks; yield states that their ranks keep, and their coords.

        Of one time and member each, as a `Remote` [(ensemble=1,) time=1, lead_time=1, variable,
        ...], from all drivers in turn.
        """
        output = self._run.output
        reached = reached_by(store.marks, output.every)
        saved: RestartStates | None = None
        if self._save is not None:
            saved = RestartStates(store.destination, self._save[1], reached)
        todo = self._lacking(store)
        if self._run.runtime.drivers == "auto":
            self._begin_to_measure(store)
        try:
            while todo:
                yield from self._round(todo, reached, saved, store.check)
                store.drain()
                lost = self._lost()
                todo = [block for block in self._lacking(store) if _key(block) in lost]
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._unload(())

    def _lost(self) -> set[tuple[Any, ...]]:
        """Return the blocks of lost drivers, also those whose states nobody got in time."""
        gone = [blocks for rank, blocks in self._given.items() if not self._is_alive(rank)]
        return {_key(block) for blocks in gone for block in blocks}

    def _lacking(self, store: ForecastStore) -> list[Block]:
        return lacking(self._cases, store.marks, self._run.output.every, self._run.runtime.batch)

    def _round(
        self,
        todo: Sequence[Block],
        reached: Callable[[Block], int],
        saved: RestartStates | None,
        check: Callable[[], None],
    ) -> Iterator[State]:
        """Forecast these blocks, but for those of drivers that are lost meanwhile."""
        with self._changed:
            self._todo = deque(todo)
            self._given.clear()
            self._driving = {rank for rank in self._ranks if self._is_alive(rank)}
            self._ready = {rank: deque() for rank in self._driving}
        drive = partial(self._drive, reached=reached, saved=saved)
        for rank in sorted(self._driving):
            in_background(partial(drive, rank), f"distinf-driver-{rank}")
        while (state := self._next(check)) is not None:
            if self._pace is not None:
                self._choose(drive)
            yield state
        if self._pace is not None:
            self._pace = None
            log.info("runtime.drivers=auto: the run was too short to measure, rank 0 forecast all")

    def _begin_to_measure(self, store: ForecastStore) -> None:
        if self._obstacle:
            log.info("runtime.drivers=auto: rank 0 forecasts alone, because %s", self._obstacle)
            self._unload(self._ranks)
            return
        stored = {name for name in store.marks.names if store.marks.lacks(name)}
        chains = [*self._run.chains, ["prognostic"]]
        pace = Pace(["+".join(names) for names in chains if stored.intersection(names)])
        self._farm.events.observe(pace.see)
        self._pace = pace

    def _choose(self, drive: Callable[..., None]) -> None:
        """Choose the number of drivers, once the pace is known, and let them begin."""
        assert self._pace is not None
        with self._changed:
            blocks = len(self._todo) + sum(map(len, self._given.values()))
            cases = len(self._run.times) * (self._run.members or 1)
            run, share = self._run, blocks / number_of_blocks(self._run)
            stored = run.nsteps // run.output.every + 1
            work = self._pace.work(blocks, run.nsteps + 1, round(cases * share) * stored)
            if work is None:
                return
            self._pace = None
            size = self._world_size
            best = best_drivers(work, size)
            log.info("runtime.drivers=auto: %s", why_so_many(work, best, size))
            self._ranks = [rank for rank in spread(best, size) if self._is_alive(rank)]
            more = self._ranks[1:]
            self._driving.update(more)
            self._ready.update({rank: deque() for rank in more})
        self._unload(self._ranks)
        if best == size:
            self._farm.stay_at_home()
        for rank in more:
            prepare = partial(self._farm.set_apart, rank) if best < size else None
            in_background(partial(drive, rank, prepare=prepare), f"distinf-driver-{rank}")

    def _unload(self, but: Sequence[int]) -> None:
        """Delete the prognostic on all other ranks."""
        for rank in [rank for rank in self._built if rank not in but and self._is_alive(rank)]:
            with contextlib.suppress(Exception):  # the session is broken: its workers stop anyway
                self._farm.call(rank, Call(self._model, "__drop__"), in_time=False)

    def _next(self, check: Callable[[], None]) -> State | None:
        """Return a state that is to be handed out; None at the end of the round.

        ``check`` raises the error of a task, or of writing.
        """
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                check()
                # Of a rank that runs the tasks of its own states: not before it needs them.
                ready = {
                    rank: (self._farm.on(rank), -len(states))
                    for rank, states in self._ready.items()
                    if states and self._farm.has_room_at_home(rank)
                }
                if ready:
                    state = self._ready[min(ready, key=lambda rank: ready[rank])].popleft()
                    self._changed.notify_all()
                    return state
                waiting = any(self._ready.values())
                if not (self._driving or waiting):
                    return None
                self._farm.check()
                self._changed.wait(_NEAR_SECONDS if waiting else _LOOK_UP_SECONDS)

    def _drive(
        self,
        rank: int,
        reached: Callable[[Block], int],
        saved: RestartStates | None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Let one driver forecast one block after the other."""
        try:
            if prepare is not None:
                prepare()
            upcoming = self._claim(rank)
            while (block := upcoming) is not None:
                upcoming = self._claim(rank, early=True)
                pieces = [Piece(b, reached(b)) for b in (block, upcoming) if b is not None]
                while not self._ask(rank, "begin", *pieces):
                    pass  # its initial condition is still being read
                while self._wait_for_room(rank):
                    if not self._step(rank, 0 if saved is None else reached(block)):
                        break
                if saved is not None:
                    saved.finish(block)
                upcoming = upcoming or self._claim(rank)
        except BaseException as error:
            with self._changed:
                if self._is_alive(rank):
                    self._error = self._error or self._explained(error)
        finally:
            with self._changed:
                self._driving.discard(rank)
                self._changed.notify_all()

    def _explained(self, error: BaseException) -> BaseException:
        return as_config_error(error) if isinstance(error, TaskError) else error

    def _claim(self, rank: int, early: bool = False) -> Block | None:
        """Take the next block; ``early``, only if there is one for each of the others, too."""
        with self._changed:
            enough = len(self._driving) if early else 1
            if self._ended or len(self._todo) < enough:
                return None
            block = self._todo.popleft()
            self._given[rank].append(block)
            return block

    def _wait_for_room(self, rank: int) -> bool:
        """Wait until few states of a driver are to be handed out; False if no more are wanted."""
        with self._changed:
            while len(self._ready[rank]) >= _AHEAD and not self._ended:
                self._changed.wait(_LOOK_UP_SECONDS)
            return not self._ended

    def _step(self, rank: int, reached: int) -> bool:
        """Let a driver step; return whether its block goes on."""
        freed = self._freed[rank]
        if numbers := tuple(freed.popleft() for _ in range(len(freed))):
            self._farm.call(rank, Call(self._model, "__release__", args=numbers), in_time=False)
        states, events = self._ask(rank, "step", reached)
        for event in events:
            self._farm.events.record(dataclasses.replace(event, rank=rank))
        if not self._is_alive(rank):
            raise WorkerLost(rank, "others have lost it")
        if states is None:
            return False
        with self._changed:
            for x, coords in states:
                owner = _Owner()
                weakref.finalize(owner, freed.append, x.number)
                self._ready[rank].append((dataclasses.replace(x, owner=owner), coords))
            self._changed.notify_all()
        return True


def _key(block: Block) -> tuple[Any, ...]:
    return block.times[0], None if block.members is None else block.members[0]
