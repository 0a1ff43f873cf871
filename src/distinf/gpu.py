"""The order of work on a GPU: which stream or thread waits for which.

The driver's thread never waits for its GPU here. A copy to host memory runs on its own stream,
after an event of the stream that computed the tensors. Another thread waits for the event of the
copy.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from distinf.background import in_order
from distinf.tensors import Rule, count_nonfinite, map_tensors, owned, tensors_of, without_rules

Allocate = Callable[[torch.Tensor], torch.Tensor | None]


class Cuda:
    """The part of ``torch.cuda`` that orders work; tests use a simulated GPU instead."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is in this GPU's memory."""
        return tensor.device == self.device

    def stream(self) -> Any:
        """Return a new stream."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def default_stream(self) -> Any:
        """Return the default stream."""
        return torch.cuda.default_stream(self.device)

    def current_stream(self) -> Any:
        """Return the stream of the calling thread."""
        return torch.cuda.current_stream(self.device)

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        """Use a stream, and its device, in the calling thread during a block."""
        return torch.cuda.stream(stream)

    def event(self) -> Any:
        """Return an event; a thread waits for it without using its core."""
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def host_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Allocate pinned host memory for a tensor; torch reuses it."""
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    def copy(self, into: torch.Tensor, out_of: torch.Tensor) -> None:
        """Enqueue a copy on the current stream."""
        into.copy_(out_of, non_blocking=True)

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Enqueue a copy of a tensor to this GPU on the current stream."""
        return tensor.to(self.device, non_blocking=True)

    def lend(self, tensor: torch.Tensor, stream: Any) -> None:
        """Let a tensor, when freed, keep its memory until a stream has done its enqueued work."""
        tensor.record_stream(stream)

    def probe(self) -> None:
        """Compute something small; raises if the context is unusable."""
        torch.zeros(1, device=self.device).add_(1).item()

    def release(self) -> None:
        """Free the unused memory of torch's allocator."""
        torch.cuda.empty_cache()


def on_gpu(tree: Any) -> torch.device | None:
    """Device of the first GPU tensor in nested containers; None if there is none."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return next((x.device for x in tensors_of(tree) if x.device.type == "cuda"), None)


def record_event(tree: Any) -> Any:
    """Record an event after all that the calling thread has enqueued; None for host tensors.

    Another thread or stream must wait for it before it uses the tensors.
    """
    device = on_gpu(tree)
    return None if device is None else _record(Cuda(device))


def _record(cuda: Cuda) -> Any:
    event = cuda.event()
    event.record(cuda.current_stream())
    return event


def to_host(tree: Any) -> Future[Any]:
    """Copy the GPU tensors in nested containers to host memory while the GPU computes.

    Until the future is done, the tensors must not be written to, except by work that this thread
    has already enqueued on its current stream.
    """
    device = on_gpu(tree)
    if device is not None:
        return in_order(copies_of(device).to_host(tree).wait)
    future: Future[Any] = Future()
    future.set_result(tree)
    return future


@functools.cache
def copies_of(device: torch.device) -> Copies:
    """Return the `Copies` of a GPU, one for the process."""
    return Copies(Cuda(device))


@dataclass(frozen=True)
class HostCopy:
    """A copy to host memory, which is complete after the event ``done``."""

    value: Any
    done: Any

    def wait(self) -> Any:
        """Wait for this copy only, not for the GPU's other streams; return it."""
        self.done.synchronize()
        return self.value


class Copies:
    """Copies between a GPU and host memory, on their own stream."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream = cuda.stream()
        self._turn = threading.Lock()

    def to_host(self, tree: Any, ready: Any = None, allocate: Allocate | None = None) -> HostCopy:
        """Begin to copy tensors to host memory, after the event ``ready``; returns at once.

        By default ``ready`` comes after all that the calling thread's stream has enqueued. The
        tensors may be freed, but must only be written to on the stream that computed them. If
        ``allocate`` returns None for a tensor, torch's pinned memory is used.
        """
        cuda = self._cuda
        ready = _record(cuda) if ready is None else ready

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            if not cuda.owns(tensor):
                return tensor.cpu()  # of another GPU; the host's own as it is
            cuda.lend(tensor, self._stream)
            return _copy_to_host(cuda, tensor, allocate)

        with self._turn, cuda.using(self._stream):
            self._stream.wait_event(ready)
            return HostCopy(map_tensors(tree, copy), _record(cuda))

    def to_device(self, tree: Any, home: Any) -> Any:
        """Copy tensors to this GPU, and wait until they are complete.

        Tensors that are already there were received on the calling thread's current stream. When
        they are freed, their memory is kept until the stream ``home``, which uses them, has done
        its enqueued work.
        """
        cuda = self._cuda
        received = _record(cuda)

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            there = cuda.to_device(tensor)
            cuda.lend(there, home)
            return there

        with self._turn, cuda.using(self._stream):
            self._stream.wait_event(received)
            copied = HostCopy(map_tensors(tree, copy), _record(cuda))
        return copied.wait()


class Lane:
    """The stream of a GPU on which all models of a rank run.

    Calls arrive on many threads, each with its own current stream, and torch's allocator reuses
    freed memory only on the same stream. With ``beside`` it is a new stream, on which the
    prognostic does not run, else the default stream.
    """

    def __init__(self, cuda: Cuda, beside: bool = False) -> None:
        self._cuda = cuda
        self._stream = cuda.stream() if beside else cuda.default_stream()

    @contextlib.contextmanager
    def entered(self, ready: Any = None) -> Iterator[None]:
        """Use this stream in the calling thread during the block.

        It first waits for the stream on which the call's tensors arrived, and for the event
        ``ready``.
        """
        arrived = self._cuda.current_stream()
        with self._cuda.using(self._stream):
            self._stream.wait_stream(arrived)
            if ready is not None:
                self._stream.wait_event(ready)
            yield

    def take(self, tree: Any) -> Any:
        """Copy a call's tensors to the GPU, and keep their memory for this stream's work."""

        def take(tensor: torch.Tensor) -> torch.Tensor:
            there = tensor if self._cuda.owns(tensor) else self._cuda.to_device(tensor)
            self._cuda.lend(there, self._stream)
            return there

        return map_tensors(tree, take)

    def take_out(
        self, result: Any, rule: Rule, on_device: bool, allocate: Allocate | None
    ) -> tuple[Any, Callable[[], int]]:
        """Copy a result from the model's memory, and wait until the call's work is done.

        The copy is on the GPU if ``on_device``, else in host memory from ``allocate``, as in
        :meth:`Copies.to_host`. Returns it and a function for the number of its NaN and infinite
        values; raises as `count_nonfinite`.
        """
        tree, found = without_rules(result, rule)
        count = count_nonfinite(found)  # faster here than on the host
        value = map_tensors(tree, self._stay if on_device else lambda x: self._leave(x, allocate))
        self._stream.synchronize()
        return value, lambda: count

    def _stay(self, tensor: torch.Tensor) -> torch.Tensor:
        there = owned(self._cuda.to_device(tensor))
        self._cuda.lend(there, self._cuda.default_stream())  # where it will be used
        return there

    def _leave(self, tensor: torch.Tensor, allocate: Allocate | None) -> torch.Tensor:
        if not self._cuda.owns(tensor):
            return owned(tensor.cpu())
        return _copy_to_host(self._cuda, tensor, allocate)

    def recover(self, error: BaseException) -> bool:
        """Whether the GPU can still be used after an error, found out by a further call.

        After an illegal address or a failed assertion every further call of the context fails.
        """
        try:
            if isinstance(error, torch.OutOfMemoryError):
                self._cuda.release()  # the next call may fit
            self._cuda.probe()
        except torch.OutOfMemoryError:
            return True
        except Exception:
            return False
        return True


def _copy_to_host(cuda: Cuda, tensor: torch.Tensor, allocate: Allocate | None) -> torch.Tensor:
    host = None if allocate is None else allocate(tensor)
    if host is None:
        host = cuda.host_like(tensor)
    cuda.copy(host, tensor.detach())
    return host
