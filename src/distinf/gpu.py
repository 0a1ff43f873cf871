"""The part of ``torch.cuda`` that orders work, so that a test can put a simulated GPU there."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

__all__ = ["Cuda"]


class Cuda:
    """The part of ``torch.cuda`` that orders work; a test puts a simulated GPU in its place.

    Parameters
    ----------
    device : torch.device
        A GPU with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is in this GPU's memory."""
        return tensor.device == self.device

    def stream(self) -> Any:
        """Return a stream that waits for no other one."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def default_stream(self) -> Any:
        """Return the stream on which work runs that names no other."""
        return torch.cuda.default_stream(self.device)

    def current_stream(self) -> Any:
        """Return the stream on which the calling thread's work runs."""
        return torch.cuda.current_stream(self.device)

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        """Let the calling thread's work run on a stream, and on its device, during a block."""
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
        """Keep a tensor's memory, once let go, until a stream has done what it has by then."""
        tensor.record_stream(stream)

    def probe(self) -> None:
        """Compute something small; raises if the context can no longer be used."""
        torch.zeros(1, device=self.device).add_(1).item()

    def release(self) -> None:
        """Give memory that torch keeps for later back to the GPU."""
        torch.cuda.empty_cache()
