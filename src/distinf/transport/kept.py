"""Tensors that stay on the rank that computed them, until the driver releases them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from distinf.copying import copy
from distinf.tensors import map_tensors
from distinf.transport.contract import Kept, Remote
from distinf.transport.slots import Recycled

_SPARE = 4  # states whose memory is used again


class KeptTensors:
    """The tensors that one rank keeps, each under a number. Safe from any thread."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._numbers = itertools.count()
        self._tensors: dict[int, torch.Tensor] = {}
        self._memory = Recycled(_SPARE)

    def keep(self, result: Kept) -> Any:
        """Copy the tensors of a result; return it with a `Remote` in place of each."""
        return map_tensors(result.value, self._keep)

    def _keep(self, tensor: torch.Tensor) -> Remote:
        number, shape = next(self._numbers), tuple(tensor.shape)
        if tensor.device.type == "cpu":
            own = self._memory.empty(shape, tensor.dtype)
            copy(tensor.detach(), own)
        else:
            own = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._tensors[number] = own
        return Remote(self._rank, number, shape, tensor.dtype)

    def take(self, remote: Remote) -> torch.Tensor:
        """Return what a task takes of a tensor that is kept here; not a copy if that is all."""
        kept = self._tensors[remote.number]
        return kept if remote.take is None else remote.take(kept)

    def copy(
        self, remote: Remote, empty: Callable[..., torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return what a task takes of a tensor that is kept here, in memory of its own."""
        kept = self._tensors[remote.number]
        if remote.take is not None:
            return remote.take(kept, empty)
        if empty is None:
            return kept.clone()
        own = empty(kept.shape, kept.dtype, kept.device)
        copy(kept, own)
        return own

    def release(self, numbers: Iterable[int]) -> None:
        """Keep these tensors no longer."""
        for number in numbers:
            self._tensors.pop(number, None)
