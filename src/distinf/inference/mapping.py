"""``map`` over futures: results in order or as they come, no further ahead than is asked for."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

__all__ = ["starmap"]


def starmap(
    submit: Callable[..., Future[Any]],
    iterable: Iterable[tuple[Any, ...]],
    limit: int,
    unordered: bool,
) -> Iterator[Any]:
    """Submit each tuple of arguments, and yield the results.

    Parameters
    ----------
    submit : Callable[..., Future]
        Called with a tuple's items.
    iterable : Iterable[tuple]
        Advanced no further ahead of the results than ``limit``.
    limit : int
        Results that may be unread, at least 1.
    unordered : bool
        Yield results as they come, rather than in the order of the arguments.

    Yields
    ------
    Any
        Results. Those that are not taken are cancelled.
    """
    ready: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    pending: deque[Future[Any]] = deque()

    def next_result() -> Any:
        if not unordered:
            return pending.popleft().result()
        future = ready.get()
        pending.remove(future)
        return future.result()

    try:
        for args in iterable:
            while len(pending) >= limit:
                yield next_result()
            future = submit(*args)
            pending.append(future)
            if unordered:
                future.add_done_callback(ready.put)
        while pending:
            yield next_result()
    finally:
        for future in pending:
            future.cancel()
