"""A transport without processes: a test answers its calls."""

from concurrent.futures import Future

import torch

from distinf.errors import WorkerLost
from distinf.transport import Reply
from distinf.transport.in_process import OnDriver


class FakeTransport:
    """In place of the transports of `distinf.transport`, with their contract.

    Parameters
    ----------
    workers : iterable of int
        The ranks that take calls.
    answer : callable, optional
        Called with a rank and a call; returns the reply at once. By default a call stays in
        `open` until the test takes it from there and completes its future.
    own : Transport, optional
        Runs the calls of rank 0, if that is no worker.
    may_join : iterable of int
        Ranks that a test may let `join`, also again.
    """

    carrier, reason = "fake", ""

    def __init__(self, workers, answer=None, own=None, may_join=()):
        self.workers, self.may_join = tuple(workers), tuple(may_join)
        self.answer = answer
        self.on_driver = OnDriver(own)
        self.sent = []  # (rank, call), in order
        # (call, its future), the oldest first
        self.open = {rank: [] for rank in (*self.workers, *self.may_join)}
        self.lost = set(self.may_join) - set(self.workers)
        self.closed = False

    def empty(self, shape, dtype, device):
        return torch.empty(tuple(shape), dtype=dtype, device=device)

    def expect(self, nbytes):
        pass

    def send(self, rank, call, timeout):
        if rank not in self.open:
            return self.on_driver.send(call, timeout)
        if call.method == "__build__":
            self.on_driver.note_build(call)
        future = Future()
        if rank in self.lost or self.closed:
            future.set_exception(WorkerLost(rank, "it left the session"))
            return future
        self.sent.append((rank, call))
        if self.answer is None:
            self.open[rank].append((call, future))
        else:
            future.set_result(self.answer(rank, call))
        return future

    def ping(self, rank, timeout):
        future = Future()
        if rank in self.lost or self.closed:
            future.set_exception(WorkerLost(rank, "it left the session"))
        else:
            future.set_result(None)
        return future

    def watch(self, joined, gone):
        self.joined, self.gone = joined, gone

    def join(self, rank):
        """Report a worker without models; what was sent to the one before stays unanswered."""
        self.lost.discard(rank)
        self.open[rank] = []
        self.joined(rank)

    def mark_lost(self, rank):
        self.lost.add(rank)

    def close(self, error=False):
        self.closed = True


def reply(rank, call, failure=None, unusable=""):
    """The reply of a model that returns its first argument, or of one that failed."""
    value = call.args[0] if call.args and failure is None else None
    return Reply(value, failure, rank, "here", 0.0, 1.0, unusable=unusable)
