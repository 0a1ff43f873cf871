"""The carrier of a run with one process: calls run where they are made."""

from __future__ import annotations

from concurrent.futures import Future

from distinf.transport.contract import Call, Reply
from distinf.worker import Worker

__all__ = ["InProcess"]


class InProcess:
    """Run every call in this process, in the thread that sends it.

    Parameters
    ----------
    worker : Worker
        Holds the models.
    """

    carrier = "in-process"
    reason = ""

    def __init__(self, worker: Worker) -> None:
        self.workers: tuple[int, ...] = (worker.rank,)
        self._worker = worker

    def send(self, rank: int, call: Call, timeout: float | None) -> Future[Reply]:
        """Run the call; a deadline cannot be kept by the thread that would have to keep it."""
        future: Future[Reply] = Future()
        future.set_result(self._worker.run(call))
        return future

    def ping(self, rank: int, timeout: float) -> Future[None]:
        """Whoever asks lives."""
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def close(self, error: bool = False) -> None:
        """Nothing to part from."""
