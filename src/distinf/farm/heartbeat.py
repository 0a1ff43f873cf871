"""Finds workers that no longer answer. The connection to a stopped process stays open."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial

from distinf.errors import CallTimeout
from distinf.transport import Transport

_PINGS = 4  # in the time after which a silent worker counts as lost
_LATE = 1 / 8  # of this time; answers come in milliseconds


class Pulse:
    """Ping the workers that are there until :meth:`stop`.

    ``workers`` returns their ranks, and for each which of its lives this is. ``lost`` is called
    once with the rank of a worker that has not answered for ``timeout`` seconds in this life, and
    with the reason.
    """

    def __init__(
        self,
        transport: Transport,
        workers: Callable[[], Mapping[int, int]],
        timeout: float,
        lost: Callable[[int, str], None],
    ) -> None:
        self._transport = transport
        self._workers = workers
        self._timeout = timeout
        self._lost = lost
        # Ranks with their lives, and since when they owe an answer.
        self._asked: dict[tuple[int, int], float] = {}
        self._missed: set[tuple[int, int]] = set()
        self._end = threading.Event()
        threading.Thread(target=self._run, name="distinf-pulse", daemon=True).start()

    def stop(self) -> None:
        """Send no more pings and ignore answers that are still to come."""
        self._end.set()

    def silent(self) -> dict[int, float]:
        """Return the ranks that are late with an answer, and for how many seconds they owe it."""
        now = time.monotonic()
        alive = self._workers().items()
        asked = self._asked.copy().items()
        owed = {worker[0]: now - since for worker, since in asked if worker in alive}
        return {rank: s for rank, s in owed.items() if s > _LATE * self._timeout}

    def _run(self) -> None:
        while not self._end.wait(self._timeout / _PINGS):
            for worker in self._workers().items():
                if worker not in self._asked:
                    self._ping(worker, time.monotonic())

    def _ping(self, worker: tuple[int, int], since: float) -> None:
        self._asked[worker] = since
        answer = self._transport.ping(worker[0], self._timeout / 2)
        answer.add_done_callback(partial(self._check_answer, worker))

    def _check_answer(self, worker: tuple[int, int], answer: Future[None]) -> None:
        since = self._asked.pop(worker, time.monotonic())
        # Closed connections are handled elsewhere: a call fails, or the process is found ended.
        silent = isinstance(answer.exception(), CallTimeout) and not self._end.is_set()
        silent = silent and worker in self._workers().items()
        if silent and worker not in self._missed:
            self._missed.add(worker)  # one missed ping is normal after Ctrl-Z and fg
            self._ping(worker, since)
            return
        self._missed.discard(worker)
        if silent:
            self._lost(
                worker[0],
                f"it has given no sign of life for {self._timeout:g} s (runtime.liveness_timeout); "
                "it may be stopped, or its node cut off",
            )
