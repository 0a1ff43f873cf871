"""Coordinates: the name of a task in words, and what a diagnostic selects from a state.

A selection is planned once from coordinates and applied at every step: first views, then at most
one gather for each dimension, into new memory.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from distinf.errors import ConfigError

if TYPE_CHECKING:  # so that a config is checked without torch
    import torch

    Index = slice | torch.Tensor
    Allocate = Callable[[Sequence[int], torch.dtype, torch.device], torch.Tensor]

Coords = OrderedDict[str, np.ndarray]
State = tuple["torch.Tensor", Coords]

# Dimensions that a diagnostic does not select; as in Earth2Studio's `map_coords`.
_FREE = ("batch", "ensemble", "time", "lead_time")
_NUMBERS = "iuf"  # kinds of NumPy types that have a distance
_CIRCLE = 360.0  # degrees
_SAME, _DIGITS = 1e-4, 4  # rounding to float32 changes coordinates by less


@dataclass(frozen=True)
class Selection:
    """What to select along which dimensions; the others are taken whole.

    ``coords`` holds the coordinates of the selected dimensions.
    """

    indices: dict[int, Index]
    coords: dict[str, np.ndarray]
    _placed: dict[tuple[torch.device, int], torch.Tensor] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __call__(
        self, x: torch.Tensor, coords: Coords, empty: Allocate | None = None
    ) -> tuple[torch.Tensor, Coords]:
        """Copy the selection from a state into a contiguous tensor; return it and its coordinates.

        ``coords`` must have the dimensions of the plan. ``empty`` gives the memory, by default on
        the device of ``x``.
        """
        return self.take(x, empty), self.select_coords(coords)

    def take(self, x: torch.Tensor, empty: Allocate | None = None) -> torch.Tensor:
        """Copy the selection from a state, without its coordinates."""
        import torch

        from distinf.copying import copy, gather

        y, gathers = x.detach(), []
        for dim, index in self.indices.items():
            if isinstance(index, slice):
                y = y.narrow(dim, index.start, index.stop - index.start)
            else:
                gathers.append((dim, self._on(x.device, dim, index)))
        last = gathers.pop() if gathers else None
        for dim, index in gathers:
            y = torch.index_select(y, dim, index)
        shape = list(y.shape)
        if last is not None:
            shape[last[0]] = len(last[1])
        if empty is None:
            out = torch.empty(shape, dtype=y.dtype, device=y.device)
        else:
            out = empty(shape, y.dtype, y.device)
        if last is None:
            copy(y, out)
        else:
            gather(y, *last, out)
        return out

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the indices on a device, which another process may not have."""
        return {**vars(self), "_placed": {}}

    def shape_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the selection from a state of this shape."""
        sizes = {
            dim: index.stop - index.start if isinstance(index, slice) else len(index)
            for dim, index in self.indices.items()
        }
        return tuple(sizes.get(dim, size) for dim, size in enumerate(shape))

    def count(self, coords: Coords) -> int:
        """Return the number of selected values of a state with these coordinates."""
        # Coordinates of a curvilinear grid have two dimensions each.
        axes = self.select_coords(coords).items()
        return math.prod(v.shape[-1] if key == "lon" else len(v) for key, v in axes)

    def _on(self, device: torch.device, dim: int, index: torch.Tensor) -> torch.Tensor:
        """Return an index on a device, kept there: a copy at every step would wait for the GPU."""
        if (device, dim) not in self._placed:
            self._placed[device, dim] = index.to(device)
        return self._placed[device, dim]

    def select_coords(self, coords: Coords) -> Coords:
        """Coordinates of the selection from those of the state."""
        return OrderedDict((key, self.coords.get(key, value)) for key, value in coords.items())


def plan(
    coords: Coords,
    wanted: Mapping[str, np.ndarray],
    who: str = "the diagnostic",
    source: str = "the state",
) -> Selection:
    """Plan how to select from a state what a diagnostic needs.

    ``coords`` are those of the state, ``wanted`` is the diagnostic's ``input_coords()``. Latitudes
    and longitudes are selected by the nearest value, only within one spacing of the coarser grid;
    longitudes are compared modulo 360 degrees. Every other dimension is selected by value. Empty
    (free) coordinates and time dimensions are taken whole. Raises `ConfigError`, which names
    ``who`` and ``source``, if the state lacks a dimension or a value, has the dimensions of the
    grid in another order, or has another curvilinear grid.
    """
    indices: dict[int, Index] = {}
    selected: dict[str, np.ndarray] = {}
    names = list(coords)
    axes = [key for key in wanted if key in coords and key not in (*_FREE, "variable")]
    if axes != sorted(axes, key=names.index):
        raise ConfigError(
            f"{who} needs the dimensions {', '.join(axes)} in this order; {source} has "
            f"{', '.join(names)}"
        )
    for key, values in wanted.items():
        if key in _FREE or len(values) == 0:
            continue
        if key not in coords:
            raise ConfigError(f"{who} needs the dimension {key!r}; the state has {names}")
        have = coords[key]
        if _is_equal(have, values):
            continue
        if have.ndim > 1 or values.ndim > 1:
            if _is_same_grid(key, have, values):
                continue
            raise ConfigError(
                f"{who} needs another grid: {key} of shape {values.shape}, while the state's has "
                f"shape {have.shape}; grids with two-dimensional coordinates are not interpolated"
            )
        selected[key] = values
        indices[names.index(key)] = _as_index(_index(key, have, values, who, source))
    return Selection(indices, selected)


def plan_key(coords: Coords) -> tuple[object, ...]:
    """Key of a cache of plans; the same for all times, lead times and members."""
    return tuple(
        (name, None if name in _FREE else (values.shape, values.tobytes()))
        for name, values in coords.items()
    )


def check_covered(
    coords: Mapping[str, np.ndarray], lat: np.ndarray, lon: np.ndarray, who: str, source: str
) -> None:
    """Raise `ConfigError` if a point is farther than one spacing from a grid.

    The grid (``coords``) and the points are in degrees, of one dimension each or of two. The error
    names ``who``, which needs the points, and ``source``, which has the grid.
    """
    if coords["lat"].ndim == 1:
        for key, values in (("lat", lat), ("lon", lon)):
            _index(key, coords[key], np.unique(values), who, source)
        return
    from scipy.spatial import cKDTree

    points = _on_sphere(coords["lat"], coords["lon"])
    tree = cKDTree(points)
    spacing = tree.query(points, k=2)[0][:, 1].max()
    far = tree.query(_on_sphere(*np.broadcast_arrays(*_mesh(lat, lon))))[0] > spacing
    if far.any():
        raise ConfigError(
            f"{who} needs lat {_axis_words(np.unique(lat))} and lon {_axis_words(np.unique(lon))}, "
            f"of which {source} does not cover {far.sum()} points: it has lat "
            f"{_axis_words(np.unique(coords['lat']))} and lon "
            f"{_axis_words(np.unique(coords['lon']))}"
        )


def _mesh(lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (lat, lon) if lat.ndim > 1 else (lat[:, np.newaxis], lon[np.newaxis, :])


def _on_sphere(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    phi, theta = np.radians(lat.ravel()), np.radians(lon.ravel())
    points = np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)], -1)
    return np.asarray(points[np.isfinite(points).all(axis=1)])


def _is_same_grid(key: str, have: np.ndarray, values: np.ndarray) -> bool:
    """Whether two-dimensional coordinates are equal, modulo 360 degrees and with NaN."""
    if have.shape != values.shape:
        return False
    off = np.abs(have - values)
    off = np.minimum(off % _CIRCLE, -off % _CIRCLE) if key == "lon" else off
    both_nan = np.isnan(have) & np.isnan(values)
    return bool(np.all((off <= _SAME) | both_nan))


def _index(key: str, have: np.ndarray, values: np.ndarray, who: str, source: str) -> np.ndarray:
    """Where in ``have`` each of ``values`` is, int64."""
    missing = ~np.isin(values, have)
    if not missing.any():
        order = np.argsort(have, kind="stable")
        return np.asarray(order[np.searchsorted(have, values, sorter=order)], np.int64)
    if values.dtype.kind not in _NUMBERS or have.dtype.kind not in _NUMBERS:
        raise ConfigError(
            f"{who} needs the {key}s {', '.join(map(str, values[missing]))}, which the prognostic "
            f"does not produce; it produces {', '.join(map(str, have))}"
        )
    if have.size == 0:
        raise ConfigError(f"{who} needs {key} {_axis_words(values)}, but {source} has {key} none")
    off = np.abs(have.astype(np.float64)[:, np.newaxis] - values.astype(np.float64))
    off = np.where(np.isnan(have)[:, np.newaxis], np.inf, off)  # NaN is near to nothing
    index = np.argmin(off, axis=0)
    column = np.arange(len(values))
    if key == "lon":  # eastward or westward, whichever is shorter
        around = np.minimum(off % _CIRCLE, -off % _CIRCLE)
        other = np.argmin(around, axis=0)
        shorter = around[other, column] < off[index, column] - _SAME
        index, off = np.where(shorter, other, index), np.minimum(off, around)
    distance = off[index, column]
    reach = np.full(len(values), _SAME)
    if key in ("lat", "lon"):
        reach += np.maximum(_spacing(key, have)[index], _spacing(key, values))
    if not (distance <= reach).all():
        worst = values[np.argmax(np.where(np.isnan(distance), np.inf, distance - reach))]
        rule = (
            ": the nearest point is taken only within one spacing of the coarser grid"
            if key in ("lat", "lon")
            else ""
        )
        raise ConfigError(
            f"{who} needs {key} {_axis_words(values)}, but {source} has {key} {_axis_words(have)}, "
            f"which lacks {worst:g}{rule}. Choose data, models and a region of the same {key}"
        )
    return np.asarray(index, np.int64)


def _is_equal(have: np.ndarray, values: np.ndarray) -> bool:
    """Whether two axes are equal; NaN equals NaN."""
    floats = have.dtype.kind == values.dtype.kind == "f"
    return np.array_equal(have, values, equal_nan=floats)


def _spacing(key: str, axis: np.ndarray) -> np.ndarray:
    """Distance of each point to its nearest neighbour; 0 for a single point."""
    period = _CIRCLE if key == "lon" else np.inf
    rounded = np.round(axis.astype(np.float64), _DIGITS)
    rounded = rounded % period if key == "lon" else rounded
    points = np.unique(rounded[~np.isnan(rounded)])
    if len(points) < 2:
        return np.zeros(len(axis))
    around = points[0] + period - points[-1]
    gaps = np.concatenate([[around], np.diff(points), [around]])
    nearest = np.append(np.minimum(gaps[:-1], gaps[1:]), 0.0)  # of NaN none
    return np.asarray(nearest[np.searchsorted(points, rounded)])


def _axis_words(axis: np.ndarray) -> str:
    """Describe an axis in a few words."""
    if len(axis) <= 4:
        return ", ".join(f"{v:g}" for v in axis)
    step = np.diff(axis)
    by = f" by {abs(step[0]):g}" if np.allclose(step, step[0], rtol=1e-3) else ""
    return f"{axis[0]:g} to {axis[-1]:g}{by} ({len(axis)} points)"


def plan_region(
    coords: Coords, region: Mapping[str, Sequence[float]], who: str = "the diagnostic"
) -> Selection:
    """Plan how to select a region of a grid.

    ``region`` has ``lat``: south and north, and ``lon``: west and east, in degrees; either may be
    missing. Points on its edges are in it, also where coordinates are rounded. It may cross the
    meridian where the grid begins, as ``[-10, 30]`` or ``[350, 30]``; its longitudes then ascend
    from the west. Of two columns on one meridian it has the first. From a curvilinear grid, it
    selects the smallest rectangle of rows and columns that contains the region. Raises
    `ConfigError` if that is empty.
    """
    lat, lon = coords.get("lat"), coords.get("lon")
    if lat is None or lon is None:
        raise ConfigError(f"output.region: {who} has no lat and lon; it has {', '.join(coords)}")
    south, north = region.get("lat", (-90.0, 90.0))
    west, east = region.get("lon", (0.0, 360.0))
    in_lat = (lat >= south - _SAME) & (lat <= north + _SAME)
    width = east - west if east >= west else east - west + 360
    eastward = (lon - west) % _CIRCLE  # degrees east of the region's western edge
    eastward = np.where(eastward > _CIRCLE - _SAME, eastward - _CIRCLE, eastward)
    in_lon = eastward <= width + _SAME
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
    columns = columns[np.diff(eastward[columns], prepend=-_CIRCLE) > _SAME]  # each meridian once
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


def plan_subset(
    coords: Coords,
    variables: Sequence[str],
    region: Mapping[str, Sequence[float]] | None,
    who: str,
    region_of: str | None = None,
) -> Selection:
    """Plan how to select variables and, if it is not None, a region; errors name ``who``."""
    cut = plan(coords, {"variable": np.array(variables)}, who)
    if region is None:
        return cut
    box = plan_region(coords, region, region_of or who)
    return Selection({**cut.indices, **box.indices}, {**cut.coords, **box.coords})


def step_words(coords: Mapping[str, Any], where: tuple[int, ...] = ()) -> str:
    """Name a step by its coords, such as " 2023-06-01T00:00 +6 h member 2 and 3 more".

    ``where`` is its index in the leading dimensions (ensemble,) time, by default the first.
    """
    own = dict(coords)
    for key, i in zip([k for k in coords if k in ("ensemble", "time")], where, strict=False):
        own[key] = coords[key][i : i + 1]
    times, leads, members = (
        values if (values := np.asarray(own.get(key, ()))).dtype.kind in kinds else values[:0]
        for key, kinds in (("time", "M"), ("lead_time", "m"), ("ensemble", "iu"))
    )
    words = [""]
    words += [str(np.datetime_as_string(time, "m")) for time in times[:1]]
    words += [f"+{lead / np.timedelta64(1, 'h'):g} h" for lead in leads[-1:]]
    words += [f"member {member}" for member in members[:1]]
    if (count := max(1, len(times)) * max(1, len(members))) > 1:
        words.append(f"and {count - 1} more")
    return " ".join(words)


def _as_index(index: np.ndarray) -> Index:
    first = int(index[0])
    if np.array_equal(index, np.arange(first, first + len(index))):
        return slice(first, first + len(index))
    import torch

    return torch.from_numpy(index)


def _outside(
    region: Mapping[str, Sequence[float]], who: str, lat: np.ndarray, lon: np.ndarray
) -> ConfigError:
    asked = ", ".join(f"{key} {list(values)}" for key, values in region.items())
    return ConfigError(
        f"output.region ({asked}) holds no point of the grid of {who}, which has lat "
        f"{lat.min():g} to {lat.max():g} and lon {lon.min():g} to {lon.max():g}"
    )
