"""Tensors leave on a thread of their own: the prognostic's goes on meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from distinf.errors import SessionError

__all__ = ["Departures"]

Wait = Callable[[], Any]
Then = Callable[[Any], None]
Failed = Callable[[Exception], None]


class Departures:
    """Hand tensors on, in order, on a thread that waits until they can travel."""

    def __init__(self) -> None:
        self._under_way: queue.SimpleQueue[tuple[Wait, Then, Failed] | None] = queue.SimpleQueue()
        self._turn = threading.Lock()
        self._closed = False
        threading.Thread(target=self._run, name="distinf-depart", daemon=True).start()

    def depart(self, wait: Wait, then: Then, failed: Failed) -> None:
        """Have tensors handed on; returns at once.

        Parameters
        ----------
        wait : Callable[[], Any]
            Returns them, once they can travel.
        then : Callable[[Any], None]
            Called with them.
        failed : Callable[[Exception], None]
            Called instead if waiting for them, or ``then``, raises, or this was closed.
        """
        with self._turn:
            if not self._closed:
                self._under_way.put((wait, then, failed))
                return
        failed(SessionError("the session is closed"))

    def close(self) -> None:
        """End the thread behind what is under way."""
        with self._turn:
            self._closed = True
            self._under_way.put(None)

    def _run(self) -> None:
        while (leaving := self._under_way.get()) is not None:
            wait, then, failed = leaving
            try:
                then(wait())
            except Exception as error:
                failed(error)
            del leaving, wait, then, failed  # nothing is kept while this waits for the next one
