"""Work on daemon threads, which do not delay the end of the process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def use_compute_threads() -> None:
    """Let this thread compute with as many threads as ``torch.set_num_threads`` has set.

    torch does so only at a thread's first parallel operation. Until then MKL uses all cores, which
    changes the last bits of its results.
    """
    import torch

    torch.get_num_threads()


def in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Run a function on a new daemon thread with this name."""
    future: Future[T] = Future()

    def run() -> None:
        use_compute_threads()
        _run(work, future)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class Ordered:
    """A daemon thread that runs functions in the order in which they were given."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._started = threading.Lock()  # held from the first function on

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run a function after all earlier ones."""
        future: Future[T] = Future()
        self._queue.put((work, future))
        if self._started.acquire(blocking=False):
            threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        return future

    def _serve(self) -> None:
        while True:
            # In one expression: no tensor is kept while this thread waits for the next function.
            _run(*self._queue.get())


# Sends tensors, so a function on this thread must not wait for the reply of a call.
in_order = Ordered("distinf-ordered").submit


def _run(work: Callable[[], T], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
