"""Calls that run in this process: all of a run with one process, and the driver's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch

from distinf.background import in_background
from distinf.errors import CallTimeout
from distinf.transport.contract import Call, Reply, Transport
from distinf.transport.worker import Worker


class InProcess:
    """Runs every call on a worker of this process, before `send` returns."""

    carrier = "in-process"
    reason = ""
    may_join: tuple[int, ...] = ()

    def __init__(self, worker: Worker) -> None:
        self.workers: tuple[int, ...] = (worker.rank,)
        self._worker = worker

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return plain memory on the device."""
        return torch.empty(tuple(shape), dtype=dtype, device=device)

    def expect(self, nbytes: int) -> None:
        """Do nothing: one call runs at a time."""

    def send(self, rank: int, call: Call, timeout: float | None) -> Future[Reply]:
        """Run the call; with a deadline on another thread, which a late call does not leave.

        A model is dropped without waiting for a call that Ctrl-C has left there.
        """
        future: Future[Reply] = Future()
        if timeout is None:
            future.set_result(self._worker.run(call))
            return future
        left = self._worker.computes and call.method == "__drop__"
        own = in_background(lambda: self._worker.run(call), "distinf-model")
        if left:
            return own
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

    def watch(self, joined: Callable[[int], None], gone: Callable[[int], None]) -> None:
        """Do nothing: no other worker ever joins."""

    def mark_lost(self, rank: int) -> None:
        """Do nothing: this process cannot be lost to itself."""

    def close(self, error: bool = False) -> None:
        """Do nothing: there is no other rank to stop."""


class OnDriver:
    """Runs calls on the driver beside its workers; its models are constructed when first needed.

    ``transport`` runs a call of rank 0 in this process.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._builds: dict[int, Call] = {}
        self._built: set[int] = set()
        self._turn = threading.Lock()

    def note_build(self, call: Call) -> None:
        """Remember how a model is constructed."""
        self._builds[call.model] = call

    def send(self, call: Call, timeout: float | None) -> Future[Reply]:
        """Run a call on a thread of its own, after those before.

        After a `CallTimeout` the model goes on, and no other one can run.
        """
        return in_background(lambda: self._run(call, timeout), "distinf-driver-works")

    def _run(self, call: Call, timeout: float | None) -> Reply:
        with self._turn:
            if call.method == "__build__":
                return self._build(call, timeout)
            if call.method != "__drop__" and call.model not in self._built:
                reply = self._build(self._builds[call.model], timeout)
                if reply.failure is not None:
                    return reply
            return self._transport.send(0, call, timeout).result()

    def _build(self, call: Call, timeout: float | None) -> Reply:
        reply = self._transport.send(0, call, timeout).result()
        if reply.failure is None:
            self._built.add(call.model)
        return reply
