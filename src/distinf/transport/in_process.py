"""The transport of a run with one process: `send` returns when the call has been run."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import torch

from distinf.background import in_background
from distinf.errors import CallTimeout
from distinf.transport.contract import Call, Reply
from distinf.transport.worker import Worker

__all__ = ["InProcess"]


class InProcess:
    """Runs every call on a worker of this process, before `send` returns."""

    carrier = "in-process"
    reason = ""

    def __init__(self, worker: Worker) -> None:
        self.workers: tuple[int, ...] = (worker.rank,)
        self._worker = worker

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return plain memory on the device."""
        return torch.empty(tuple(shape), dtype=dtype, device=device)

    def expect(self, nbytes: int) -> None:
        """Do nothing: one call runs at a time."""

    def send(self, rank: int, call: Call, timeout: float | None) -> Future[Reply]:
        """Run the call; with a deadline on another thread, which a late call does not leave."""
        future: Future[Reply] = Future()
        if timeout is None:
            future.set_result(self._worker.run(call))
            return future
        own = in_background(lambda: self._worker.run(call), "distinf-model")
        try:
            future.set_result(own.result(timeout))
        except TimeoutError:
            what = f"{call.task or call.method} on rank {rank}"
            future.set_exception(CallTimeout(f"{what}: no answer in {timeout:g} s"))
        return future

    def ping(self, rank: int, timeout: float) -> Future[None]:
        """Return a future that is done: the same process is always alive."""
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def mark_lost(self, rank: int) -> None:
        """Do nothing: this process cannot be lost to itself."""

    def close(self, error: bool = False) -> None:
        """Do nothing: there is no other rank to stop."""
