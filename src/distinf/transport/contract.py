"""What every transport promises.

A transport takes a :class:`Call` to a rank and brings back a :class:`Reply`. It knows tensors and
processes, but nothing of weather, and nothing of which worker gets which task. Its carrier, a
`Choice`, is the way that tensors travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

__all__ = ["Call", "Choice", "Failure", "Peer", "Reply", "Transport"]


@dataclass(frozen=True)
class Choice:
    """How tensors travel: the carrier ``"cuda"`` or ``"host"``, and why it was chosen."""

    carrier: str
    why: str


@dataclass(frozen=True)
class Peer:
    """What every rank knows of one rank.

    Parameters
    ----------
    rank : int
        As in torch.distributed.
    device : str, optional
        The device that it computes on, such as ``"cuda:0"``, by default ``"cpu"``.
    visible : tuple[str, ...], optional
        UUIDs of the GPUs that its process sees, in their order, by default none.
    host, node : str, optional
        Its host name, and the name of that node as the launcher knows it.
    pid : int, optional
        Its process on that host.
    created : float, optional
        When that process started, in seconds since the epoch.
    address : str, optional
        Its IPv4 address on the way to rank 0, by default empty: unknown, or it is rank 0.
    """

    rank: int
    device: str = "cpu"
    visible: tuple[str, ...] = ()
    host: str = ""
    node: str = ""
    pid: int = 0
    created: float = 0.0
    address: str = ""

    @property
    def gpu(self) -> str:
        """UUID of the GPU that it computes on; empty without one."""
        return self.visible[int(self.device.partition(":")[2])] if self.visible else ""


@dataclass(frozen=True)
class Call:
    """One call of a function of a resident model.

    Parameters
    ----------
    model : int
        Number of the resident model.
    method : str
        ``"__build__"`` constructs the model as ``args[0](*args[1:], **kwargs)``, ``"__drop__"``
        deletes it, ``"__forward__"`` is one diagnostic call; anything else is the name of one of
        its methods.
    task : str
        Describes the task, for messages.
    args, kwargs : tuple, dict
        Arguments; the tensors among them belong to the call alone.
    ready : Any, optional
        Event of the driver's GPU after which the tensors hold their values, by default None: they
        do. It does not travel.
    """

    model: int
    method: str
    task: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    ready: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class Failure:
    """An error of a model, in types that every process can read."""

    what: str
    kind: str
    message: str
    traceback: str


@dataclass(frozen=True)
class Reply:
    """The envelope of a call's outcome: a value or a failure.

    Parameters
    ----------
    value : Any
        What the call returned; no other object shares the memory of its tensors. They are on the
        host, unless the session keeps results on the device.
    failure : Failure | None
        Set when the model raised.
    rank, host : int, str
        Where it ran.
    started, ended : float
        Seconds since the epoch on that host's clock.
    nonfinite : int, optional
        Number of values of the result that are NaN or infinite, where a rule asks for it.
    unusable : bool, optional
        Whether the failure left the rank's GPU unusable for its process, by default False.
    """

    value: Any
    failure: Failure | None
    rank: int
    host: str
    started: float
    ended: float
    nonfinite: int = 0
    unusable: bool = False


class Transport(Protocol):
    """Carries calls from the driver to the workers.

    Attributes
    ----------
    workers : tuple[int, ...]
        The ranks that take calls.
    reason : str
        Why it has this carrier, for the log; empty where there is no choice.
    """

    workers: tuple[int, ...]
    reason: str

    @property
    def carrier(self) -> str:
        """Name of the carrier, for the log."""
        ...

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return memory for a tensor of a call, from which it travels fastest.

        Parameters
        ----------
        shape, dtype : Sequence[int], torch.dtype
            Of the tensor, which is contiguous and has a storage of its own.
        device : torch.device
            Where its values are computed.

        Returns
        -------
        torch.Tensor
            On that device; its values are undefined. The memory is used again once no tensor
            refers to it and no call that took it can still read it.
        """
        ...

    def expect(self, nbytes: int) -> None:
        """Prepare memory for tensors of this size, which will be sent to every worker."""
        ...

    def send(self, rank: int, call: Call, timeout: float | None) -> Future[Reply]:
        """Carry a call to a rank; returns at once unless the rank is this process.

        Parameters
        ----------
        rank : int
            One of ``workers``.
        call : Call
            Its tensors must not be changed until the future is done. A model that writes to its
            input changes its own copy alone: the same call may be sent once more, elsewhere.
        timeout : float | None
            Deadline in seconds; None waits as long as the rank lives.

        Returns
        -------
        Future[Reply]
            Raises `WorkerLost` when the rank is lost and `CallTimeout` when the deadline has
            passed.
        """
        ...

    def ping(self, rank: int, timeout: float) -> Future[None]:
        """Ask a rank for a sign of life, which it gives even while a model computes.

        ``timeout`` is in seconds. The future raises as that of :meth:`send`.
        """
        ...

    def mark_lost(self, rank: int) -> None:
        """Mark a rank as lost: it gets no more calls, and :meth:`close` does not wait for it."""
        ...

    def close(self, error: bool = False) -> None:
        """Stop every worker that is left; idempotent, ends within seconds.

        With ``error`` the session ends by one, so a worker may still be inside a model.
        """
        ...
