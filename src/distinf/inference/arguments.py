"""Arguments of a task, in memory of its own, cut down to what the diagnostic needs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from distinf.coords import Selection, plan, plan_key
from distinf.copying import copy
from distinf.tensors import map_leaves
from distinf.transport import Transport

__all__ = ["Arguments", "describe"]

Coords = OrderedDict[str, np.ndarray]
_FLOAT = 4  # bytes of a value of a state
_SMALL = 2**14  # bytes that are not worth asking the transport where to put them


class Arguments:
    """What the tasks of one diagnostic take along.

    Parameters
    ----------
    name : str
        Of the diagnostic, for messages.
    wanted : Mapping[str, np.ndarray] | None
        What its ``input_coords`` said; None: it takes everything.
    transport : Transport
        Gives the memory.
    """

    def __init__(
        self, name: str, wanted: Mapping[str, np.ndarray] | None, transport: Transport
    ) -> None:
        self._name = name
        self._wanted = wanted
        self._transport = transport
        self._plans: dict[tuple[object, ...], Selection] = {}

    def expect(self, coords: Coords) -> Coords:
        """Return the coordinates of what will be cut out of states with these, and prepare for it.

        Raises
        ------
        ConfigError
            If the states lack variables that the diagnostic needs.
        """
        plan = self._plan(coords)
        self._transport.expect(plan.count(coords) * _FLOAT)
        return plan.select_coords(coords)

    def own(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments that share no memory with these; a state is cut down to what is needed.

        Parameters
        ----------
        args, kwargs : tuple, dict
            If ``args`` begins with a tensor and its coords, these are the state.

        Raises
        ------
        ConfigError
            If the state lacks variables that the diagnostic needs.
        """
        kwargs = map_leaves(kwargs, self._copy) if kwargs else kwargs
        x, coords = args[:2] if len(args) >= 2 else (None, None)
        if self._wanted is None or not _is_state(x, coords):
            return tuple(map_leaves(list(args), self._copy)), kwargs
        y, y_coords = self._plan(coords)(x, coords, self._transport.empty)
        return (y, *map_leaves([y_coords, *args[2:]], self._copy)), kwargs

    def _copy(self, leaf: Any) -> Any:
        """Give the task its own: it may be sent later, and a lost worker's is sent once more."""
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
        except Exception:  # what cannot be copied does not travel either
            return leaf

    def _plan(self, coords: Coords) -> Selection:
        key = plan_key(coords)
        if key not in self._plans:
            self._plans[key] = plan(coords, self._wanted or {}, self._name)
        return self._plans[key]


def _is_state(x: Any, coords: Any) -> bool:
    return isinstance(x, torch.Tensor) and isinstance(coords, OrderedDict) and x.ndim == len(coords)


def describe(name: str, number: int, args: tuple[Any, ...]) -> str:
    """Name a task as (diagnostic, time, lead_time) if it has these, else by its number."""
    if len(args) >= 2 and isinstance(args[1], dict):
        coords = args[1]
        words = [name]
        if len(coords.get("time", ())) == 1:
            words.append(str(np.datetime_as_string(coords["time"][0], unit="m")))
        if len(coords.get("lead_time", ())) > 0:
            words.append(f"+{coords['lead_time'][-1] / np.timedelta64(1, 'h'):g} h")
        if len(words) > 1:
            return " ".join(words)
    return f"{name} task {number}"
