"""Who gets which task next.

A pure state machine: no torch, no threads, no clock. Its caller reports what happened (a task was
submitted, a call ended, a worker was lost or joined) and carries out the decisions that it returns.
So the same code runs in a session, in a simulation with a virtual clock and in a property test.

A worker computes one task at a time; ``depth`` tasks may be on it at once, so that the input
of the next one is sent while the present one computes. There is no queue of new tasks: when
every slot is taken, :meth:`Dispatcher.has_room` is false and the submitter waits. So memory is
bounded by the number of workers. Only tasks of lost workers wait here, at most as many as these
workers had slots.
"""

from __future__ import annotations

import itertools
import sys
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Start:
    """Send this task to this worker now; ``attempt`` is 1 for the first one."""

    task: int
    worker: int
    attempt: int


@dataclass(frozen=True)
class GiveUp:
    """Do not try this task again.

    ``attempts`` workers were lost while they computed it. ``no_workers``: no worker that may run
    it is there or may join; else it used up its attempts.
    """

    task: int
    attempts: int
    no_workers: bool


Decision = Start | GiveUp


@dataclass
class _Task:
    workers: frozenset[int] | None
    losses: int = 0


class Dispatcher:
    """Assign tasks to workers.

    ``depth`` tasks may be on one worker at once: the one that it computes and those whose input is
    being sent. A task is given up after ``max_attempts`` workers were lost while they computed it;
    a task that only waited on a lost worker loses no attempt. Workers of ``may_join`` may join
    later, or again after they were lost; tasks wait for them where no other may run them.
    """

    def __init__(
        self,
        workers: Iterable[int],
        depth: int = 2,
        max_attempts: int = 3,
        may_join: Iterable[int] = (),
    ) -> None:
        if depth < 1 or max_attempts < 1:
            raise ValueError("depth and max_attempts must be at least 1")
        self._on: dict[int, deque[int]] = {}
        # Among equally loaded workers the one that was used longest ago comes first.
        self._uses = itertools.count()
        self._used: dict[int, int] = {}
        # Workers with a free slot, in the order of preference; kept sorted, since with thousands
        # of workers a search for every task would take longer than a task.
        self._free: list[tuple[int, int, int]] = []
        self._tasks: dict[int, _Task] = {}
        self._retry: deque[int] = deque()
        self._depth = depth
        self._max_attempts = max_attempts
        self._may_join = set(may_join)
        self._apart: set[int] = set()
        for worker in workers:
            self.join(worker)

    @property
    def workers(self) -> tuple[int, ...]:
        """Ranks of the workers that are left and get tasks, ascending."""
        return tuple(sorted(self._on.keys() - self._apart))

    @property
    def may_join(self) -> frozenset[int]:
        """Workers that may join, also again; empty after :meth:`stop_waiting`."""
        return frozenset(self._may_join)

    @property
    def apart(self) -> frozenset[int]:
        """Ranks that get no more tasks; see :meth:`set_apart`."""
        return frozenset(self._apart)

    def on(self, worker: int) -> tuple[int, ...]:
        """Tasks on a worker, the one it computes first; empty for a lost one."""
        return tuple(self._on.get(worker, ()))

    def load(self) -> tuple[int, int]:
        """How many workers have tasks, and how many tasks wait on a worker or for one."""
        computed = sum(bool(tasks) for tasks in self._on.values())
        busy = sum(bool(self._on[worker]) for worker in self._on.keys() - self._apart)
        return busy, len(self._tasks) - computed

    def has_room(self, workers: frozenset[int] | None = None) -> bool:
        """Whether a new task for any of ``workers`` (None: all) can start at once."""
        return self._pick(workers) is not None

    def can_ever_run(self, workers: frozenset[int] | None = None) -> bool:
        """Whether any of ``workers`` (None: all) is left or may join."""
        known = itertools.chain(self._on.keys() - self._apart, self._may_join)
        return any(workers is None or worker in workers for worker in known)

    def submit(self, task: int, workers: frozenset[int] | None = None) -> Start:
        """Start a new task on the least loaded of ``workers`` (None: all).

        Raises `ValueError` if the number ``task`` is in use, or no slot is free: ask
        :meth:`has_room` first.
        """
        if task in self._tasks:
            raise ValueError(f"task {task} is already submitted")
        worker = self._pick(workers)
        if worker is None:
            raise ValueError(f"no free slot for task {task}")
        self._tasks[task] = _Task(workers)
        return self._start(task, worker)

    def finish(self, task: int, worker: int) -> list[Decision]:
        """Free the slot of a task that ended, with a value or with its model's error.

        A late answer of a lost worker is ignored, since the task may be elsewhere by now. Returns
        tasks of lost workers that can start in the free slot.
        """
        if task not in self._on.get(worker, ()):
            return []
        self._leave(worker)
        self._on[worker].remove(task)
        self._enter(worker)
        del self._tasks[task]
        return self._start_waiting()

    def join(self, worker: int) -> list[Decision]:
        """Add a worker, also one that was lost; returns waiting tasks that can start on it."""
        if worker not in self._on:
            self._apart.discard(worker)
            self._on[worker] = deque()
            self._used[worker] = next(self._uses)
            self._enter(worker)
        return self._start_waiting()

    def mark_lost(self, worker: int, ended: int | None = None) -> list[Decision]:
        """Remove a worker; its tasks go to the others, oldest first.

        Only the task that it was computing loses an attempt; none does if the worker was lost with
        its answer to the task ``ended``. Returns what starts elsewhere at once, and what is given
        up.
        """
        if worker not in self._on:
            return []
        self._leave(worker)
        tasks = self._on.pop(worker)
        del self._used[worker]
        if ended is not None:
            tasks.remove(ended)
            del self._tasks[ended]
        elif tasks:
            self._tasks[tasks[0]].losses += 1
        # By age, together with those of workers lost before: `_tasks` is in order of submission.
        waiting = {*self._retry, *tasks}
        self._retry = deque(number for number in self._tasks if number in waiting)
        return self._give_up() + self._start_waiting()

    def take_any(self) -> None:
        """Let any number of tasks be on a worker from now on: their submitter limits them."""
        self._depth = sys.maxsize
        self._free = sorted(self._preference(w) for w in self._on.keys() - self._apart)

    def set_apart(self, worker: int) -> list[Decision]:
        """Give a worker no more tasks; those on it end there. Returns what is given up for it."""
        if worker in self._on and worker not in self._apart:
            self._leave(worker)
            self._apart.add(worker)
        return self._give_up()

    def stop_waiting(self, worker: int | None = None) -> list[Decision]:
        """Do not expect ``worker`` (None: anyone) to join; returns what is given up for it."""
        self._may_join -= self._may_join.copy() if worker is None else {worker}
        return self._give_up()

    def _start(self, task: int, worker: int) -> Start:
        self._leave(worker)
        self._on[worker].append(task)
        self._used[worker] = next(self._uses)
        self._enter(worker)
        return Start(task, worker, self._tasks[task].losses + 1)

    def _preference(self, worker: int) -> tuple[int, int, int]:
        return len(self._on[worker]), self._used[worker], worker

    def _enter(self, worker: int) -> None:
        if len(self._on[worker]) < self._depth and worker not in self._apart:
            insort(self._free, self._preference(worker))

    def _leave(self, worker: int) -> None:
        if len(self._on[worker]) < self._depth and worker not in self._apart:
            del self._free[bisect_left(self._free, self._preference(worker))]

    def _pick(self, workers: frozenset[int] | None) -> int | None:
        for _, _, worker in self._free:
            if workers is None or worker in workers:
                return worker
        return None

    def _start_waiting(self) -> list[Decision]:
        started: list[Decision] = []
        for task in list(self._retry):
            worker = self._pick(self._tasks[task].workers)
            if worker is not None:
                self._retry.remove(task)
                started.append(self._start(task, worker))
        return started

    def _give_up(self) -> list[Decision]:
        given_up: list[Decision] = []
        for task in list(self._retry):
            state = self._tasks[task]
            no_workers = not self.can_ever_run(state.workers)
            if no_workers or state.losses >= self._max_attempts:
                self._retry.remove(task)
                del self._tasks[task]
                given_up.append(GiveUp(task, state.losses, no_workers))
        return given_up
