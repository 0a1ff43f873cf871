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

    torch itself does so at a thread's first parallel operation. Until then MKL takes all cores,
    and the last bits of what it computes are others.
    """
    import torch

    torch.get_num_threads()


def in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Run a function on a daemon thread of its own, which has this name."""
    future: Future[T] = Future()

    def run() -> None:
        use_compute_threads()
        _run(work, future)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def in_order(work: Callable[[], T]) -> Future[T]:
    """Run a function on this process's ordered thread, after all that were given before.

    The thread sends tensors, so the function must not wait for the reply of a call.
    """
    future: Future[T] = Future()
    _queue.put((work, future))
    if _first.acquire(blocking=False):
        threading.Thread(target=_serve, name="distinf-ordered", daemon=True).start()
    return future


_queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
_first = threading.Lock()  # held from the first call of `in_order` on


def _serve() -> None:
    while True:
        # Passed on at once: no tensor is kept while this thread waits for the next function.
        _run(*_queue.get())


def _run(work: Callable[[], T], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
