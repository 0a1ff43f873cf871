"""Whether workers live, asked over the transport: a stopped process answers nothing for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from distinf.errors import CallTimeout
from distinf.transport import Transport

__all__ = ["Pulse"]

_SIGNS = 4  # asked for in the time after which silence counts


class Pulse:
    """Ask every worker for signs of life until it is stopped.

    Parameters
    ----------
    transport : Transport
        Carries the question.
    workers : Callable[[], tuple[int, ...]]
        Tells the ranks that are left.
    timeout : float
        Seconds of silence after which a worker is lost.
    lost : Callable[[int, str], None]
        Called once with the rank of a silent worker and the reason.
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
        """Ask no more; what was asked before is of no consequence."""
        self._end.set()

    def _run(self) -> None:
        while not self._end.wait(self._timeout / _SIGNS):
            for rank in self._workers():
                if rank not in self._asked:
                    self._ask(rank)

    def _ask(self, rank: int) -> None:
        self._asked.add(rank)
        answer = self._transport.ping(rank, self._timeout / 2)
        answer.add_done_callback(partial(self._hear, rank))

    def _hear(self, rank: int, answer: Future[None]) -> None:
        self._asked.discard(rank)
        # A connection that ended is somebody else's news: a call fails, or its process is seen to.
        silent = isinstance(answer.exception(), CallTimeout)
        if silent and not self._end.is_set() and rank not in self._missed:
            self._missed.add(rank)  # once, as after Ctrl-Z and fg, says nothing
            self._ask(rank)
            return
        self._missed.discard(rank)
        if silent and not self._end.is_set():
            self._lost(
                rank,
                f"it has given no sign of life for {self._timeout:g} s (runtime.liveness_timeout); "
                "it may be stopped, or its node cut off",
            )
