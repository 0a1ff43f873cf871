"""Finds workers that no longer answer. The connection to a stopped process stays open."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from distinf.errors import CallTimeout
from distinf.transport import Transport

_PINGS = 4  # in the time after which a silent worker counts as lost


class Pulse:
    """Ping the workers that are left until :meth:`stop`.

    ``lost`` is called once with the rank of a worker that has not answered for ``timeout``
    seconds, and with the reason.
    """

    def __init__(
        self,
        transport: Transport,
        workers: Callable[[], tuple[int, ...]],
        timeout: float,
        lost: Callable[[int, str], None],
    ) -> None:
        self._transport = transport
        self._workers = workers
        self._timeout = timeout
        self._lost = lost
        self._asked: set[int] = set()
        self._missed: set[int] = set()
        self._end = threading.Event()
        threading.Thread(target=self._run, name="distinf-pulse", daemon=True).start()

    def stop(self) -> None:
        """Send no more pings and ignore answers that are still to come."""
        self._end.set()

    def _run(self) -> None:
        while not self._end.wait(self._timeout / _PINGS):
            for rank in self._workers():
                if rank not in self._asked:
                    self._ping(rank)

    def _ping(self, rank: int) -> None:
        self._asked.add(rank)
        answer = self._transport.ping(rank, self._timeout / 2)
        answer.add_done_callback(partial(self._check_answer, rank))

    def _check_answer(self, rank: int, answer: Future[None]) -> None:
        self._asked.discard(rank)
        # Closed connections are handled elsewhere: a call fails, or the process is found ended.
        silent = isinstance(answer.exception(), CallTimeout) and not self._end.is_set()
        if silent and rank not in self._missed:
            self._missed.add(rank)  # one missed ping is normal after Ctrl-Z and fg
            self._ping(rank)
            return
        self._missed.discard(rank)
        if silent:
            self._lost(
                rank,
                f"it has given no sign of life for {self._timeout:g} s (runtime.liveness_timeout); "
                "it may be stopped, or its node cut off",
            )
