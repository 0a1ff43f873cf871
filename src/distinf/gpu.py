"""The order of work on a GPU: which stream or thread waits for which.

The driver's thread never waits for its GPU here. A copy to host memory runs on a stream of its own
behind an event of the stream that computed the tensors; whoever needs the bytes waits for the
copy's event, on another thread.
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
    """The part of ``torch.cuda`` that orders work; tests replace it by a simulated GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is in this GPU's memory."""
        return tensor.device == self.device

    def stream(self) -> Any:
        """Return a stream that waits for no other one."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def default_stream(self) -> Any:
        """Return the stream of all work for which no other stream is named."""
        return torch.cuda.default_stream(self.device)

    def current_stream(self) -> Any:
        """Return the stream on which the calling thread's work runs."""
        return torch.cuda.current_stream(self.device)

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        """Run the calling thread's work on a stream, and on its device, during a block."""
        return torch.cuda.stream(stream)

    def event(self) -> Any:
        """Return an event; a thread that waits for it does not spin."""
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def host_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Allocate pinned host memory for a tensor; torch keeps it for the next one."""
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    def copy(self, into: torch.Tensor, out_of: torch.Tensor) -> None:
        """Enqueue a copy on the current stream."""
        into.copy_(out_of, non_blocking=True)

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Enqueue a copy of a tensor to this GPU on the current stream."""
        return tensor.to(self.device, non_blocking=True)

    def lend(self, tensor: torch.Tensor, stream: Any) -> None:
        """Keep a freed tensor's memory until a stream has done what is enqueued on it by then."""
        tensor.record_stream(stream)

    def probe(self) -> None:
        """Compute something small; raises if the context can no longer be used."""
        torch.zeros(1, device=self.device).add_(1).item()

    def release(self) -> None:
        """Return the memory that torch's allocator holds unused to the GPU."""
        torch.cuda.empty_cache()


def on_gpu(tree: Any) -> torch.device | None:
    """Device of the first tensor in nested containers that is on a GPU; None if none is."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return next((x.device for x in tensors_of(tree) if x.device.type == "cuda"), None)


def record_event(tree: Any) -> Any:
    """Record an event behind all that the calling thread has enqueued; None for host tensors.

    Another thread or stream that uses the tensors waits for it.
    """
    device = on_gpu(tree)
    return None if device is None else _record(Cuda(device))


def _record(cuda: Cuda) -> Any:
    event = cuda.event()
    event.record(cuda.current_stream())
    return event


def to_host(tree: Any) -> Future[Any]:
    """Copy tensors of a GPU to host memory while the GPU computes; others stay as they are.

    The tensors, in nested containers, must not be written to until the future is done, except by
    what this thread launches on its current stream before.
    """
    device = on_gpu(tree)
    if device is not None:
        return in_order(copies_of(device).to_host(tree).wait)
    future: Future[Any] = Future()
    future.set_result(tree)
    return future


@functools.cache
def copies_of(device: torch.device) -> Copies:
    """Return this process's `Copies` of a GPU."""
    return Copies(Cuda(device))


@dataclass(frozen=True)
class HostCopy:
    """A copy to host memory; its bytes are there once the event ``done`` has happened."""

    value: Any
    done: Any

    def wait(self) -> Any:
        """Wait on the host for this copy alone, not for the GPU's other streams."""
        self.done.synchronize()
        return self.value


class Copies:
    """Copies between a GPU and host memory, on a stream of their own."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream = cuda.stream()
        self._turn = threading.Lock()

    def to_host(self, tree: Any, ready: Any = None, allocate: Allocate | None = None) -> HostCopy:
        """Begin to copy tensors to host memory, behind the event ``ready``; returns at once.

        By default ``ready`` is behind all that the calling thread's stream has enqueued. The
        tensors may be freed, but not written to except on the stream that computed them. Where
        ``allocate`` returns no host memory for a tensor, torch's pinned memory is used.
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
        """Copy tensors to this GPU, and wait on the host until they are complete.

        Tensors that are on it already were received on the calling thread's current stream. The
        memory of all is not reused before what the stream ``home``, which uses them, has enqueued
        when they are freed.
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
    """The one stream of a GPU on which a rank's models run.

    Calls arrive on many threads, each with its own current stream and device, and torch's allocator
    keeps freed memory for the stream that used it. So all models run on one: with ``beside`` a
    stream of its own, which the thread that steps the prognostic does not wait for, else the
    device's default stream.
    """

    def __init__(self, cuda: Cuda, beside: bool = False) -> None:
        self._cuda = cuda
        self._stream = cuda.stream() if beside else cuda.default_stream()

    @contextlib.contextmanager
    def entered(self, ready: Any = None) -> Iterator[None]:
        """Run what the calling thread does during the block on this stream.

        It waits for the stream on which the call's tensors arrived, and for the event ``ready``.
        """
        arrived = self._cuda.current_stream()
        with self._cuda.using(self._stream):
            self._stream.wait_stream(arrived)
            if ready is not None:
                self._stream.wait_event(ready)
            yield

    def take(self, tree: Any) -> Any:
        """Copy a call's tensors to the GPU, and keep their memory until this stream is done."""

        def take(tensor: torch.Tensor) -> torch.Tensor:
            there = tensor if self._cuda.owns(tensor) else self._cuda.to_device(tensor)
            self._cuda.lend(there, self._stream)
            return there

        return map_tensors(tree, take)

    def take_out(
        self, result: Any, rule: Rule, on_device: bool, allocate: Allocate | None
    ) -> tuple[Any, Callable[[], int]]:
        """Copy a result out of the model's memory, and wait for all of the call's work.

        It stays on the GPU if ``on_device``; ``allocate`` is as in :meth:`Copies.to_host`. Returns
        the copy, and the number of its values that are not finite; raises as `count_nonfinite`.
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
        """Whether the GPU can still be used after an error.

        An illegal address or a failed assertion leaves a context in which every further call fails,
        so a further call is tried.
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
