"""Which variables and region of a state a diagnostic needs, as an index plan.

The plan is made once from coordinates and carried out per step: views first, then at most one
gather per dimension, into memory that is the task's own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from distinf.copying import copy, gather
from distinf.errors import ConfigError

__all__ = ["Selection", "plan", "plan_region", "rename_variables"]

Coords = OrderedDict[str, np.ndarray]
Index = slice | torch.Tensor
Allocate = Callable[[Sequence[int], torch.dtype, torch.device], torch.Tensor]

# Set per step, not by a diagnostic's request; as in Earth2Studio's `map_coords`.
_FREE = ("batch", "ensemble", "time", "lead_time")


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
    _placed: dict[tuple[torch.device, int], torch.Tensor] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __call__(
        self, x: torch.Tensor, coords: Coords, empty: Allocate | None = None
    ) -> tuple[torch.Tensor, Coords]:
        """Cut out the selection.

        Parameters
        ----------
        x : torch.Tensor
            A state.
        coords : Coords
            Its coordinates; dimensions as those that the plan was made for.
        empty : Allocate | None, optional
            Gives the memory for the result, contiguous, for a shape, a dtype and the device of
            ``x``; by default None: new memory on that device.

        Returns
        -------
        tuple[torch.Tensor, Coords]
            A contiguous tensor that shares no memory with ``x``, and its coordinates.
        """
        y = x.detach()
        for dim, index in self.indices.items():
            if isinstance(index, slice):
                y = y.narrow(dim, index.start, index.stop - index.start)
        gathers = [
            (dim, self._on(y.device, dim, index))
            for dim, index in self.indices.items()
            if isinstance(index, Tensor)
        ]
        last = gathers.pop() if gathers else None
        for dim, index in gathers:
            y = torch.index_select(y, dim, index)
        shape = list(y.shape)
        if last is not None:
            shape[last[0]] = len(last[1])
        out = (empty or _empty)(shape, y.dtype, y.device)
        if last is None:
            copy(y, out)
        else:
            gather(y, *last, out)
        return out, self.select_coords(coords)

    def count(self, coords: Coords) -> int:
        """Return the number of values that it cuts out of a state with these coordinates."""
        # Coordinates of a curvilinear grid have two dimensions each.
        axes = self.select_coords(coords).items()
        return math.prod(v.shape[-1] if key == "lon" else len(v) for key, v in axes)

    def _on(self, device: torch.device, dim: int, index: torch.Tensor) -> torch.Tensor:
        """Return an index on a device; its copy would wait for the GPU's work at every step."""
        if (device, dim) not in self._placed:
            self._placed[device, dim] = index.to(device)
        return self._placed[device, dim]

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
        indices[dim] = _as_index(index)
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


def plan_region(
    coords: Coords, region: Mapping[str, Sequence[float]], who: str = "the diagnostic"
) -> Selection:
    """Plan how to cut a region out of a grid.

    Parameters
    ----------
    coords : Coords
        Coordinates with ``lat`` and ``lon``, of one dimension each or of two.
    region : Mapping[str, Sequence[float]]
        ``lat``: south and north, ``lon``: west and east, in degrees; either may be missing. A
        region may lie across the meridian where the grid begins, as ``[-10, 30]`` or
        ``[350, 30]``; its longitudes then ascend from the west.
    who : str, optional
        Named in errors.

    Returns
    -------
    Selection
        The plan. On a grid with two-dimensional coordinates it is the smallest rectangle of rows
        and columns that holds the region.

    Raises
    ------
    ConfigError
        If no point of the grid is in the region.
    """
    lat, lon = coords.get("lat"), coords.get("lon")
    if lat is None or lon is None:
        raise ConfigError(f"output.region: {who} has no lat and lon; it has {', '.join(coords)}")
    south, north = region.get("lat", (-90.0, 90.0))
    west, east = region.get("lon", (0.0, 360.0))
    in_lat = (lat >= south) & (lat <= north)
    width = east - west if east >= west else east - west + 360
    eastward = (lon - west) % 360  # degrees east of the region's western edge
    in_lon = eastward <= width
    names = list(coords)
    if lat.ndim > 1:
        inside = in_lat & in_lon
        if not inside.any():
            raise _outside(region, who, lat, lon)
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        first = names.index("lat")
        indices: dict[int, Index] = {first: box[0], first + 1: box[1]}
        return Selection(indices, {"lat": lat[box], "lon": lon[box]})
    if not in_lat.any() or not in_lon.any():
        raise _outside(region, who, lat, lon)
    columns = np.flatnonzero(in_lon)
    columns = columns[np.argsort(eastward[columns], kind="stable")]
    lons = lon[columns]
    if (np.diff(lons) < 0).any():  # across the first meridian
        lons = west + eastward[columns]
    return Selection(
        {
            names.index("lat"): _as_index(np.flatnonzero(in_lat)),
            names.index("lon"): _as_index(columns),
        },
        {"lat": lat[in_lat], "lon": lons},
    )


def rename_variables(coords: Coords, names: Mapping[str, str]) -> Coords:
    """Coordinates with new names of variables."""
    new = OrderedDict(coords)
    new["variable"] = np.array([names.get(str(v), str(v)) for v in coords["variable"]])
    return new


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=device)


def _as_index(index: np.ndarray) -> Index:
    first = int(index[0])
    if np.array_equal(index, np.arange(first, first + len(index))):
        return slice(first, first + len(index))
    return torch.from_numpy(index)


def _outside(
    region: Mapping[str, Sequence[float]], who: str, lat: np.ndarray, lon: np.ndarray
) -> ConfigError:
    asked = ", ".join(f"{key} {list(values)}" for key, values in region.items())
    return ConfigError(
        f"output.region ({asked}) holds no point of the grid of {who}, which has lat "
        f"{lat.min():g} to {lat.max():g} and lon {lon.min():g} to {lon.max():g}"
    )
