"""The wait for workers that may join."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from distinf.errors import SessionError


class Patience:
    """Calls ``end`` with an error after ``seconds`` (None: never) with fewer workers than wanted.

    ``lock`` is that of its caller, who holds it in :meth:`look`; ``end`` is called without it.
    ``waiting`` says for how many workers it waits; empty if enough are there.
    """

    def __init__(
        self,
        wanted: int,
        seconds: float | None,
        lock: AbstractContextManager[Any],
        end: Callable[[SessionError], None],
    ) -> None:
        self.waiting = ""
        self._wanted = wanted
        self._seconds = seconds
        self._lock = lock
        self._end = end
        self._timer: threading.Timer | None = None

    def look(self, there: int, may_join: bool) -> None:
        """Note how many workers are there, rank 0 not counted, and whether more may join."""
        short = may_join and there < self._wanted
        self.waiting = f"waiting for workers: {there} of {self._wanted}" if short else ""
        if self._timer is not None and not short:
            self._timer.cancel()
            self._timer = None
        elif short and self._timer is None and self._seconds is not None:
            self._timer = threading.Timer(self._seconds, self._pass)
            self._timer.daemon = True
            self._timer.start()

    def _pass(self) -> None:
        with self._lock:
            if threading.current_thread() is not self._timer:
                return  # enough workers came just now
            words = self.waiting
        self._end(
            SessionError(f"{words} for {self._seconds:g} s, no longer (runtime.wait_for_workers)")
        )
