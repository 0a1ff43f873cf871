"""Selects and copies the inputs of a task, so that the caller may change its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from distinf.coords import Coords, Selection, plan, plan_key
from distinf.copying import copy
from distinf.tensors import map_leaves
from distinf.transport import Remote, Transport

_FLOAT = 4  # bytes of a value of a state
_SMALL = 2**14  # bytes; smaller tensors are copied to plain memory


class Arguments:
    """The arguments of one diagnostic's tasks, in memory from the transport.

    ``wanted`` is its ``input_coords()``; None: it takes every state as it is.
    """

    def __init__(
        self, name: str, wanted: Mapping[str, np.ndarray] | None, transport: Transport
    ) -> None:
        self._name = name
        self._wanted = wanted
        self._transport = transport
        self._plans: dict[tuple[object, ...], Selection] = {}

    def expect(self, coords: Coords) -> Coords:
        """Return the coords of what is selected from such states, and prepare memory for it."""
        plan = self._plan(coords)
        self._transport.expect(plan.count(coords) * _FLOAT)
        return plan.select_coords(coords)

    def own(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments that share no memory with these.

        If ``args`` begins with a tensor and its coords, that is a state: only what the diagnostic
        needs is copied; of a state that a rank keeps, it is copied when it is sent. Raises
        `ConfigError` if the state lacks variables that it needs.
        """
        kwargs = map_leaves(kwargs, self._copy) if kwargs else kwargs
        x, coords = args[:2] if len(args) >= 2 else (None, None)
        if isinstance(x, Remote) and coords is not None:
            part, y_coords = self._of_remote(x, coords)
            return (part, *map_leaves([y_coords, *args[2:]], self._copy)), kwargs
        if self._wanted is None or not _is_state(x, coords):
            return tuple(map_leaves(list(args), self._copy)), kwargs
        y, y_coords = self._plan(coords)(x, coords, self._transport.empty)
        return (y, *map_leaves([y_coords, *args[2:]], self._copy)), kwargs

    def _of_remote(self, x: Remote, coords: Coords) -> tuple[Remote, Coords]:
        """Let the rank that keeps a state select from it what the diagnostic needs."""
        if self._wanted is None:
            return x, coords
        plan = self._plan(coords)
        return replace(x, take=plan.take, shape=plan.shape_of(x.shape)), plan.select_coords(coords)

    def _copy(self, leaf: Any) -> Any:
        """Copy a leaf: it may be sent later, and once more if its worker is lost."""
        if isinstance(leaf, torch.Tensor):
            if leaf.layout is not torch.strided or leaf.is_quantized:
                return leaf.clone()
            if leaf.nbytes < _SMALL:
                return leaf.clone(memory_format=torch.contiguous_format)
            own = self._transport.empty(leaf.shape, leaf.dtype, leaf.device)
            copy(leaf.detach(), own)
            return own
        if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
            return leaf.copy()
        try:
            return deepcopy(leaf)
        except Exception:  # it cannot be pickled either: sending it raises the error
            return leaf

    def _plan(self, coords: Coords) -> Selection:
        key = plan_key(coords)
        if key not in self._plans:
            self._plans[key] = plan(coords, self._wanted or {}, self._name)
        return self._plans[key]


def _is_state(x: Any, coords: Any) -> bool:
    return isinstance(x, torch.Tensor) and isinstance(coords, OrderedDict) and x.ndim == len(coords)
