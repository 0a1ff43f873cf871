"""The calls of the interface that was proposed for Earth2Studio, with the same meaning.

An application that was written for it runs with only its import changed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

from distinf.background import use_compute_threads
from distinf.session import current_session

_LOOK_UP_SECONDS = 1.0


class QueuedCalls:
    """Calls that are queued in one place, and whose results are read in another.

    ``submit`` starts a call when a worker is free; ``check`` raises the error that broke the
    session, if one did.
    """

    def __init__(self, submit: Callable[..., Future[Any]], check: Callable[[], None]) -> None:
        self._submit, self._check = submit, check
        self._done: queue.SimpleQueue[Future[Any] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._outstanding = 0
        self._error: BaseException | None = None

    def put(self, *args: Any, **kwargs: Any) -> None:
        """Start a call; its result comes out of :meth:`results`."""
        future = self._submit(*args, **kwargs)
        with self._changed:
            self._outstanding += 1
        future.add_done_callback(self._finish)

    def _finish(self, future: Future[Any]) -> None:
        self._done.put(future)
        with self._changed:
            self._outstanding -= 1
            if not future.cancelled() and self._error is None:
                self._error = future.exception()
            self._changed.notify_all()

    def results(self) -> Iterator[Any]:
        """Yield results as they come, until :meth:`wait` has seen the last; unread ones stay."""
        while True:
            try:
                future = self._done.get(timeout=_LOOK_UP_SECONDS)
            except queue.Empty:
                self._check()
                continue
            if future is None:
                return
            yield future.result()

    def wait(self) -> None:
        """Wait until every call is done, whether or not anyone reads; raise the first error."""
        with self._changed:
            while self._outstanding:
                self._changed.wait(_LOOK_UP_SECONDS)
            error = self._error
        self._done.put(None)
        if error is not None:
            raise error


def local_concurrent_pipeline(tasks: Iterable[Callable[[], Any]]) -> list[Any]:
    """Run callables side by side in threads; return their results in order.

    For instance one queues calls and one reads results. The first error of any of them is raised;
    it also breaks the session, so that none of the others waits for it.
    """
    tasks = list(tasks)
    threads = max(1, len(tasks))
    with ThreadPoolExecutor(threads, initializer=use_compute_threads) as pool:
        try:
            futures = [pool.submit(task) for task in tasks]
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException as interrupt:  # Ctrl-C: none of the threads goes on
            current_session().farm.fail(interrupt)
            raise
        for future in futures:
            if future.done() and (error := future.exception()) is not None:
                current_session().farm.fail(error)
                raise error
    return [future.result() for future in futures]
