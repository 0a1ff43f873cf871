"""Initial times and members: how they share a batch, and how a batch is split into tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from distinf.coords import Coords, State


@dataclass(frozen=True)
class Block:
    """Initial times (datetime64[ns]), members (None without an ensemble) and number of steps."""

    times: np.ndarray
    members: np.ndarray | None
    nsteps: int

    @property
    def coords(self) -> dict[str, np.ndarray]:
        """Coordinates of its times and members."""
        ensemble = {} if self.members is None else {"ensemble": self.members}
        return {"time": self.times, **ensemble}


def blocks(cases: Block, batch: int) -> list[Block]:
    """Divide a block into blocks of at most ``batch`` states.

    Several times share a block only if all their members fit into it.
    """
    times, members, nsteps = cases.times, cases.members, cases.nsteps
    if members is None:
        return [Block(times[i : i + batch], None, nsteps) for i in range(0, len(times), batch)]
    dates = max(1, batch // len(members))
    return [
        Block(times[i : i + dates], members[j : j + batch], nsteps)
        for i in range(0, len(times), dates)
        for j in range(0, len(members), batch)
    ]


def tasks(x: torch.Tensor, coords: Coords) -> Iterator[State]:
    """Split a state of several times and members into views of one time and member each."""
    axes = [key for key in ("ensemble", "time") if key in coords]
    for index in np.ndindex(*(len(coords[key]) for key in axes)):
        part, own = x, OrderedDict(coords)
        for axis, (key, i) in enumerate(zip(axes, index, strict=True)):
            part = part.narrow(axis, i, 1)
            own[key] = coords[key][i : i + 1]
        yield part, own
