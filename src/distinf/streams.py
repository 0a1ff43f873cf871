"""Who waits for whom on a GPU: copies beside the stream that computes, and the models' own stream.

The driver's thread never waits for its GPU here. A copy to host memory runs on a stream of its own
behind an event of the stream that made the tensors; whoever needs the bytes waits for the copy's
event, on another thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from distinf.gpu import Cuda
from distinf.tensors import map_tensors, owned, tensors_of

__all__ = ["Copies", "Lane", "Leaving", "mark", "on_gpu"]

Allocate = Callable[[torch.Tensor], torch.Tensor | None]


def on_gpu(tree: Any) -> torch.device | None:
    """Device of the first tensor in nested containers that is on a GPU; None if none is."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return next((x.device for x in tensors_of(tree) if x.device.type == "cuda"), None)


def mark(tree: Any) -> Any:
    """Event behind all that the calling thread has enqueued; None for tensors of the host.

    Whoever uses the tensors on another thread or stream lets that stream wait for it.
    """
    device = on_gpu(tree)
    if device is None:
        return None
    cuda = Cuda(device)
    event = cuda.event()
    event.record(cuda.current_stream())
    return event


@dataclass(frozen=True)
class Leaving:
    """A copy in host memory that is under way.

    Parameters
    ----------
    value : Any
        The copy; its bytes are there once ``done`` has happened.
    done : Any
        An event.
    """

    value: Any
    done: Any

    def wait(self) -> Any:
        """Wait on the host for the copy alone, not for the GPU's other streams."""
        self.done.synchronize()
        return self.value


class Copies:
    """Copies between a GPU and host memory, on a stream of their own.

    Parameters
    ----------
    cuda : Cuda
        The GPU.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._side = cuda.stream()
        self._turn = threading.Lock()

    def to_host(
        self,
        tree: Any,
        ready: Any = None,
        allocate: Allocate | None = None,
    ) -> Leaving:
        """Begin to copy tensors to host memory; returns at once.

        Parameters
        ----------
        tree : Any
            Nested containers. Their tensors are kept from being reused until they are copied, so
            they may be let go, but not written to except on the stream that made them.
        ready : Any, optional
            Event after which they hold their values, by default what the calling thread's stream
            has enqueued by now.
        allocate : Callable[[torch.Tensor], torch.Tensor | None] | None, optional
            Gives the host memory for a tensor; by default, and where it returns None, it is pinned
            memory of torch's.

        Returns
        -------
        Leaving
            The copy.
        """
        cuda = self._cuda
        if ready is None:
            ready = cuda.event()
            ready.record(cuda.current_stream())

        def leave(tensor: torch.Tensor) -> torch.Tensor:
            if not cuda.owns(tensor):
                return tensor.cpu()  # of another GPU; the host's own as it is
            host = None if allocate is None else allocate(tensor)
            if host is None:
                host = cuda.host_like(tensor)
            cuda.copy(host, tensor)
            cuda.lend(tensor, self._side)
            return host

        with self._turn, cuda.using(self._side):
            self._side.wait_event(ready)
            value = map_tensors(tree, leave)
            done = cuda.event()
            done.record(self._side)
        return Leaving(value, done)

    def to_device(self, tree: Any, home: Any) -> Any:
        """Bring tensors to this GPU, and wait on the host until they are complete.

        Parameters
        ----------
        tree : Any
            Nested containers. Tensors that are on this GPU already have been received on the
            calling thread's current stream.
        home : Any
            Stream on which they will be used; their memory is not given to others before what it
            has enqueued by the time they are let go.

        Returns
        -------
        Any
            The same structure.
        """
        cuda = self._cuda
        received = cuda.event()
        received.record(cuda.current_stream())

        def arrive(tensor: torch.Tensor) -> torch.Tensor:
            there = tensor if cuda.owns(tensor) else cuda.to_device(tensor)
            cuda.lend(there, home)
            return there

        with self._turn, cuda.using(self._side):
            self._side.wait_event(received)
            value = map_tensors(tree, arrive)
            done = cuda.event()
            done.record(self._side)
        done.synchronize()
        return value


class Lane:
    """The one stream of a GPU on which a rank's models run.

    Calls arrive on many threads, each with its own current stream and device, and torch's allocator
    keeps freed memory for the stream that used it. So all models run on one.

    Parameters
    ----------
    cuda : Cuda
        The GPU.
    beside : bool, optional
        Whether it is a stream of its own, which the thread that steps the prognostic does not wait
        for; by default False: the device's default stream.
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

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Bring a call's tensor to the GPU, and keep its memory until this stream is done."""
        there = tensor if self._cuda.owns(tensor) else self._cuda.to_device(tensor)
        self._cuda.lend(there, self._stream)
        return there

    def to_host(self, tree: Any, allocate: Allocate | None = None) -> Any:
        """Copy a result to host memory and wait for it, and for all of the call's work.

        The memory is given as to :meth:`Copies.to_host`.
        """

        def leave(tensor: torch.Tensor) -> torch.Tensor:
            if not self._cuda.owns(tensor):
                return owned(tensor.cpu())
            host = None if allocate is None else allocate(tensor)
            if host is None:
                host = self._cuda.host_like(tensor)
            self._cuda.copy(host, tensor.detach())
            return host

        value = map_tensors(tree, leave)
        self._stream.synchronize()
        return value

    def keep(self, tree: Any) -> Any:
        """Leave a result on the GPU, and wait for it, and for all of the call's work."""

        def stay(tensor: torch.Tensor) -> torch.Tensor:
            there = owned(self._cuda.to_device(tensor))
            self._cuda.lend(there, self._cuda.default_stream())  # where it will be used
            return there

        value = map_tensors(tree, stay)
        self._stream.synchronize()
        return value

    def recover(self, error: BaseException) -> bool:
        """Tell whether the GPU can still be used after an error; an error may poison its context.

        A context that an illegal address or a failed assertion has poisoned fails every further
        call, so that is how it is found out.
        """
        try:
            if isinstance(error, torch.OutOfMemoryError):
                self._cuda.release()  # the next, smaller one may fit
            self._cuda.probe()
        except torch.OutOfMemoryError:
            return True
        except Exception:
            return False
        return True
