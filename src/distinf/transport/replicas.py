"""The driver's view of ranks that run models together: each replica is one worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import torch

from distinf.errors import CallTimeout, SessionError, WorkerLost
from distinf.transport.contract import Call, Reply, Transport


class Replicas:
    """A transport to the first rank of each replica.

    Parameters
    ----------
    transport : Transport
        To all ranks.
    groups : Sequence[tuple[int, ...]]
        Ranks of the prognostic, of which rank 0 is the first, and of each replica.
    """

    def __init__(self, transport: Transport, groups: Sequence[tuple[int, ...]]) -> None:
        self._transport = transport
        self._groups = {rank: group for group in groups for rank in group}
        self.workers = tuple(group[0] for group in groups[1:])
        self.may_join: tuple[int, ...] = ()
        self.carrier, self.reason = transport.carrier, transport.reason
        self.beside_driver = groups[0][1:]
        self.when_lost: Callable[[int, str], None] | None = None
        self.end: Callable[[int], None] | None = None

    def form(self, join: Callable[..., None], timeout: float) -> None:
        """Let the ranks of each group join; ``join`` is that of rank 0.

        Raises `SessionError` if a rank does not join in ``timeout`` seconds.
        """
        groups = [group for group in dict.fromkeys(self._groups.values()) if len(group) > 1]
        joining = {
            rank: self._transport.send(rank, Call(0, "__group__", "joining", group), timeout)
            for group in groups
            for rank in group
            if rank != 0
        }
        if self.beside_driver:
            join(0, *self.beside_driver)
        for rank, answer in joining.items():
            try:
                failure = answer.result().failure
            except (CallTimeout, WorkerLost) as error:
                raise SessionError(f"rank {rank} did not join its group: {error}") from error
            if failure is not None:
                raise SessionError(f"rank {rank} did not join its group: {failure.message}")

    def group_of(self, rank: int) -> tuple[int, ...]:
        """Ranks that run models together with this one, itself among them."""
        return self._groups[rank]

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return memory for a tensor of a call."""
        return self._transport.empty(shape, dtype, device)

    def expect(self, nbytes: int) -> None:
        """Prepare memory for tensors of this size."""
        self._transport.expect(nbytes)

    def send(self, rank: int, call: Call, timeout: float | None) -> Future[Reply]:
        """Carry a call to the first rank of a replica, which makes it with the others."""
        return self._transport.send(rank, call, timeout)

    def ping(self, rank: int, timeout: float) -> Future[None]:
        """Ask a rank for a sign of life, also one that follows another."""
        answer = self._transport.ping(rank, timeout)
        if rank not in self.workers:
            answer.add_done_callback(partial(self._look, rank))
        return answer

    def _look(self, rank: int, answer: Future[None]) -> None:
        """Report a rank that takes no calls, so that nobody else notices that it is gone."""
        error = answer.exception()
        if isinstance(error, WorkerLost) and self.when_lost is not None:
            self.when_lost(rank, str(error))

    def watch(self, joined: Callable[[int], None], gone: Callable[[int], None]) -> None:
        """Do nothing: the ranks are fixed."""

    def mark_lost(self, rank: int) -> None:
        """Mark all ranks of a replica as lost, and end those that follow the first one."""
        for other in self._groups[rank]:
            if other != 0:
                self._transport.mark_lost(other)
            if other != rank and self.end is not None:
                self.end(other)

    def close(self, error: bool = False) -> None:
        """Stop every rank that is left."""
        self._transport.close(error)
