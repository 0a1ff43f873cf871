"""Initial times and members: what the prognostic steps together, and what is one task."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Block", "Coords", "State", "blocks", "tasks"]

Coords = OrderedDict[str, np.ndarray]
State = tuple[torch.Tensor, Coords]


@dataclass(frozen=True)
class Block:
    """Initial times and members that the prognostic steps together.

    Parameters
    ----------
    times : np.ndarray
        Initial times, datetime64[ns].
    members : np.ndarray | None
        Numbers of the members; None without an ensemble.
    nsteps : int
        How many steps.
    """

    times: np.ndarray
    members: np.ndarray | None
    nsteps: int


def blocks(times: np.ndarray, members: int | None, nsteps: int, batch: int) -> list[Block]:
    """Divide dates and members into blocks of at most ``batch``.

    Members of one date come first into the same block; dates share one only where all their
    members fit.

    Parameters
    ----------
    times : np.ndarray
        Initial times.
    members : int | None
        Size of the ensemble; None without one.
    nsteps : int
        Steps of each forecast.
    batch : int
        States that the prognostic takes at once.

    Returns
    -------
    list[Block]
        In the order of dates, then members.
    """
    if members is None:
        return [Block(times[i : i + batch], None, nsteps) for i in range(0, len(times), batch)]
    every = np.arange(members)
    dates = max(1, batch // members)
    return [
        Block(times[i : i + dates], every[j : j + batch], nsteps)
        for i in range(0, len(times), dates)
        for j in range(0, members, batch)
    ]


def tasks(x: torch.Tensor, coords: Coords) -> Iterator[State]:
    """Take a state of several dates and members apart into those of one each, as views."""
    axes = [key for key in ("ensemble", "time") if key in coords]
    for index in np.ndindex(*(len(coords[key]) for key in axes)):
        part, own = x, OrderedDict(coords)
        for axis, (key, i) in enumerate(zip(axes, index, strict=True)):
            part = part.narrow(axis, i, 1)
            own[key] = coords[key][i : i + 1]
        yield part, own
