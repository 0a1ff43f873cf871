"""The names of the interface that was proposed for Earth2Studio, with the same meaning.

An application that was written for it runs with only its import changed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from distinf.session import close_session, current_session, open_session

if TYPE_CHECKING:
    from distinf.farm import Farm

__all__ = ["ProposedInterface", "local_concurrent_pipeline"]

_LOOK_UP_SECONDS = 1.0


class ProposedInterface:
    """Queue calls here, read their results there; the base of `DistributedInference`."""

    _farm: Farm
    submit: Callable[..., Future[Any]]

    def __init__(self) -> None:
        self._stream: queue.SimpleQueue[Future[Any] | None] = queue.SimpleQueue()
        self._arrival = threading.Condition()
        self._outstanding = 0
        self._error: BaseException | None = None

    @staticmethod
    def initialize() -> None:
        """Open a session on this rank; every rank calls it."""
        open_session()

    @staticmethod
    def finalize() -> None:
        """Close the session; a worker serves here until the driver gets here too."""
        close_session()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Queue a call of ``forward``; its result comes out of :meth:`results`.

        Blocks until a worker is free. Raises as :meth:`submit`.
        """
        future = self.submit(*args, **kwargs)
        with self._arrival:
            self._outstanding += 1
        future.add_done_callback(self._arrive)

    def _arrive(self, future: Future[Any]) -> None:
        self._stream.put(future)
        with self._arrival:
            self._outstanding -= 1
            if not future.cancelled() and self._error is None:
                self._error = future.exception()
            self._arrival.notify_all()

    def results(self) -> Iterator[Any]:
        """Yield results of queued calls as they come, until :meth:`wait` has seen the last.

        Unread results are kept.

        Yields
        ------
        Any
            What ``forward`` returned.

        Raises
        ------
        TaskError
            If a queued call failed.
        SessionError
            If the session broke.
        """
        while True:
            try:
                future = self._stream.get(timeout=_LOOK_UP_SECONDS)
            except queue.Empty:
                self._farm.check()
                continue
            if future is None:
                return
            yield future.result()

    def wait(self) -> None:
        """Wait until every queued call is done, whether or not anyone reads :meth:`results`.

        Raises
        ------
        TaskError
            If a queued call failed.
        """
        with self._arrival:
            while self._outstanding:
                self._arrival.wait(_LOOK_UP_SECONDS)
            error = self._error
        self._stream.put(None)
        if error is not None:
            raise error


def local_concurrent_pipeline(tasks: Iterable[Callable[[], Any]]) -> list[Any]:
    """Run callables side by side in threads and raise the first error of any of them.

    Parameters
    ----------
    tasks : Iterable[Callable[[], Any]]
        For instance one that queues calls and one that reads results. When one raises, the
        session is broken, so that none of the others waits for it.

    Returns
    -------
    list[Any]
        What they returned, in order.
    """
    tasks = list(tasks)
    with ThreadPoolExecutor(max_workers=max(1, len(tasks))) as pool:
        futures = [pool.submit(task) for task in tasks]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done() and future.exception() is not None:
                error = future.exception()
                assert error is not None
                current_session().farm.fail(error)
                raise error
    return [future.result() for future in futures]
