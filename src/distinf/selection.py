"""Which variables and region of a state a diagnostic needs, as an index plan.

The plan is made once from coordinates and carried out per step: views first, then at most one
gather per dimension, into memory that is the task's own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from distinf.errors import ConfigError

__all__ = ["Selection", "plan"]

Coords = OrderedDict[str, np.ndarray]
Index = slice | torch.Tensor

# Set per step, not by a diagnostic's request; as in Earth2Studio's `map_coords`.
_FREE = ("batch", "time", "lead_time")


@dataclass(frozen=True)
class Selection:
    """An index plan.

    Parameters
    ----------
    indices : dict[int, Index]
        What to take along which dimension; dimensions not named are taken whole.
    coords : Coords
        Coordinates of the selected dimensions.
    """

    indices: dict[int, Index]
    coords: dict[str, np.ndarray]

    def __call__(self, x: torch.Tensor, coords: Coords) -> tuple[torch.Tensor, Coords]:
        """Cut out the selection.

        Parameters
        ----------
        x : torch.Tensor
            A state.
        coords : Coords
            Its coordinates; dimensions as those that the plan was made for.

        Returns
        -------
        tuple[torch.Tensor, Coords]
            A contiguous tensor on the device of ``x`` that shares no memory with it, and its
            coordinates.
        """
        y = x
        for dim, index in self.indices.items():
            if isinstance(index, slice):
                y = y.narrow(dim, index.start, index.stop - index.start)
        for dim, index in self.indices.items():
            if isinstance(index, torch.Tensor):
                y = torch.index_select(y, dim, index.to(y.device))
        y = y.contiguous()
        if y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            y = y.clone(memory_format=torch.contiguous_format)
        return y, self.select_coords(coords)

    def select_coords(self, coords: Coords) -> Coords:
        """Coordinates of the selection from those of the state."""
        return OrderedDict((key, self.coords.get(key, value)) for key, value in coords.items())


def plan(
    coords: Coords, wanted: Mapping[str, np.ndarray], who: str = "the diagnostic"
) -> Selection:
    """Plan how to cut what a diagnostic wants out of a state.

    The result is that of Earth2Studio's ``map_coords``: variables by name, latitudes and
    longitudes by value, and by the nearest value where a grid does not hold them. Empty
    (free) coordinates and time dimensions are taken as they come.

    Parameters
    ----------
    coords : Coords
        Coordinates of the state.
    wanted : Mapping[str, np.ndarray]
        The diagnostic's ``input_coords()``.
    who : str, optional
        Named in errors.

    Returns
    -------
    Selection
        The plan.

    Raises
    ------
    ConfigError
        If a dimension or variables are missing (lists them), or a curvilinear grid differs.
    """
    indices: dict[int, Index] = {}
    selected: dict[str, np.ndarray] = {}
    names = list(coords)
    for key, values in wanted.items():
        if key in _FREE or len(values) == 0:
            continue
        if key not in coords:
            raise ConfigError(f"{who} needs the dimension {key!r}; the state has {names}")
        have = coords[key]
        if have.shape == values.shape and np.array_equal(have, values):
            continue
        if have.ndim > 1 or values.ndim > 1:
            raise ConfigError(
                f"{who} needs another grid: {key} of shape {values.shape}, while the state's has "
                f"shape {have.shape}; grids with two-dimensional coordinates are not interpolated"
            )
        index = _index(key, have, values, who)
        selected[key] = values
        dim = names.index(key)
        if np.array_equal(index, np.arange(index[0], index[0] + len(index))):
            indices[dim] = slice(int(index[0]), int(index[0]) + len(index))
        else:
            indices[dim] = torch.from_numpy(index)
    return Selection(indices, selected)


def _index(key: str, have: np.ndarray, values: np.ndarray, who: str) -> np.ndarray:
    """Where in ``have`` each of ``values`` is, int64."""
    missing = ~np.isin(values, have)
    if not missing.any():
        order = np.argsort(have, kind="stable")
        exact: np.ndarray = order[np.searchsorted(have, values, sorter=order)].astype(np.int64)
        return exact
    if not np.issubdtype(values.dtype, np.number):
        raise ConfigError(
            f"{who} needs the {key}s {', '.join(map(str, values[missing]))}, which the prognostic "
            f"does not produce; it produces {', '.join(map(str, have))}"
        )
    distance = np.abs(have[:, np.newaxis] - values[np.newaxis, :])
    nearest: np.ndarray = np.argmin(distance, axis=0).astype(np.int64)
    return nearest
