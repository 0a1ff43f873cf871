"""What every transport promises.

A transport takes a :class:`Call` to a rank and brings back a :class:`Reply`. It knows tensors and
processes, but nothing of weather, and nothing of which worker gets which task. Its carrier, a
`Choice`, is the way that tensors travel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Choice:
    """How tensors travel: the carrier ``"cuda"`` or ``"host"``, and why it was chosen."""

    carrier: str
    why: str


@dataclass(frozen=True)
class Peer:
    """Where one rank runs, as all ranks know it."""

    rank: int
    device: str = "cpu"  # that it computes on, such as "cuda:0"
    visible: tuple[str, ...] = ()  # UUIDs of the GPUs that its process sees, in their order
    host: str = ""
    node: str = ""  # its host as the launcher calls it
    pid: int = 0
    created: float = 0.0  # start of its process, in seconds since the epoch
    address: str = ""  # its IPv4 address on the way to rank 0; empty: unknown, or it is rank 0

    @property
    def gpu(self) -> str:
        """UUID of the GPU that it computes on; empty without one."""
        return self.visible[int(self.device.partition(":")[2])] if self.visible else ""


@dataclass(frozen=True)
class Call:
    """One call of a function of a resident model.

    ``method`` is ``"__build__"``, which constructs the model as ``args[0](*args[1:], **kwargs)``,
    ``"__drop__"``, which deletes it, ``"__forward__"`` for one diagnostic call, or the name of one
    of its methods; of no model ``"__release__"``, which releases the kept tensors of the numbers
    ``args``, or ``"__group__"``, which joins the ranks ``args``. ``task`` describes the task in
    messages. The tensors among the arguments belong to the call alone; they hold their values after
    the event ``ready`` of the driver's GPU (None: they do already), which does not travel.
    """

    model: int
    method: str
    task: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    ready: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class Kept:
    """A result of a model whose tensors stay on its rank; the caller gets a `Remote` for each."""

    value: Any


@dataclass(frozen=True)
class Remote:
    """A tensor that a rank keeps, and what a task takes of it.

    As the first argument of a call it is replaced, before the model runs, by what ``take`` makes of
    the tensor (None: the whole), of this ``shape``. ``take`` may be given a function for memory, as
    `Transport.empty`. The rank keeps the tensor until it is told to release its ``number``.
    ``owner`` ends when nobody on rank 0 needs the tensor any more; it does not travel.
    """

    rank: int
    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    take: Callable[..., torch.Tensor] | None = None
    owner: Any = field(default=None, compare=False)

    @property
    def nbytes(self) -> int:
        """Size of what is taken, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what does not travel."""
        return {**vars(self), "owner": None}


@dataclass(frozen=True)
class Failure:
    """An error of a model, in types that every process can read."""

    what: str
    kind: str
    message: str
    traceback: str


@dataclass(frozen=True)
class Reply:
    """The outcome of a call: a value, or the failure of its model.

    No other object shares the memory of the value's tensors, which are on the host unless the
    session keeps results on the device; a tensor that stays on the rank is a `Remote`. ``started``
    and ``ended`` are seconds since the epoch on the clock of ``host``. ``nonfinite`` counts the
    result's values that are NaN or infinite, where a rule asks for it. ``unusable``: what the
    failure left unusable for the rank's process, ``"GPU"`` or ``"group"``. ``reading`` is when the
    model read its input before (start and end); None: it got it with the call. ``memory`` is what
    its process, or its GPU, holds after a call of ``forward``, in bytes; 0: not known.
    """

    value: Any
    failure: Failure | None
    rank: int
    host: str
    started: float
    ended: float
    nonfinite: int = 0
    unusable: str = ""
    reading: tuple[float, float] | None = None
    memory: int = 0


class Transport(Protocol):
    """Carries calls from the driver to the workers.

    ``workers`` are the ranks that take calls when the session begins; ``may_join`` those that may
    join later, or again after they were lost: none where the workers are fixed. ``carrier`` names
    the carrier in the log; ``reason`` says there why it was chosen, and is empty where there is no
    choice.
    """

    workers: tuple[int, ...]
    may_join: tuple[int, ...]
    carrier: str
    reason: str

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return memory for a tensor of a call, from which it travels fastest.

        The tensor is contiguous, has a storage of its own, and is on the device where its values
        are computed; its values are undefined. Its memory is used again once no tensor refers to
        it and no call that took it can still read it.
        """
        ...

    def expect(self, nbytes: int) -> None:
        """Prepare memory for tensors of this size, which will be sent to every worker."""
        ...

    def send(self, rank: int, call: Call, timeout: float | None) -> Future[Reply]:
        """Carry a call to a rank: a worker or rank 0, this process.

        It returns at once, unless there is one process only, which is its own worker.
        The call's tensors must not be changed until the future is done. A model that writes to its
        input changes its own copy alone: the same call may be sent once more, elsewhere.
        ``timeout`` is the deadline in seconds; None waits as long as the rank lives. The future
        raises `WorkerLost` when the rank is lost and `CallTimeout` when the deadline has passed.
        """
        ...

    def ping(self, rank: int, timeout: float) -> Future[None]:
        """Ask a rank for a sign of life, which it gives even while a model computes.

        ``timeout`` is in seconds. The future raises as that of :meth:`send`.
        """
        ...

    def watch(self, joined: Callable[[int], None], gone: Callable[[int], None]) -> None:
        """Call ``joined(rank)`` each time that a worker is there that holds no models.

        That is a new one, or a lost one that came back, of `may_join`. ``gone(rank)`` is called for
        one that will not come any more. Both are called from a thread of the transport and return
        at once.
        """
        ...

    def mark_lost(self, rank: int) -> None:
        """Mark a rank as lost: it gets no more calls, and :meth:`close` does not wait for it.

        A rank of `may_join` is replaced, unless it was already, and reported as :meth:`watch` says.
        """
        ...

    def close(self, error: bool = False) -> None:
        """Stop every worker that is left; idempotent, ends within seconds.

        With ``error`` the session ends by one, so a worker may still be inside a model.
        """
        ...
