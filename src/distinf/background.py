"""Work beside the calling thread that nobody waits for when the run ends early."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["in_background"]

T = TypeVar("T")


def in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Run a function on a daemon thread of its own.

    Parameters
    ----------
    work : Callable[[], T]
        The function.
    name : str
        Of the thread.

    Returns
    -------
    Future
        Its result.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
