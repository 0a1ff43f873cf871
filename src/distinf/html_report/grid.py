"""The grid of a variable: where its points lie, and how large their cells are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False)
class Grid:
    """Points of a grid, or of a part of it.

    Attributes
    ----------
    kind : str
        ``"regular"``: lat and lon are axes; ``"curvilinear"``: [y, x] each; ``"points"``: [point]
        each, as of an icosahedral grid; ``"unknown"``: the store has neither, they are indices.
    lat, lon : np.ndarray
        Degrees, float64. Along the axis of a regular grid lon has no jump.
    """

    kind: str
    lat: np.ndarray
    lon: np.ndarray

    def thinned(self, step: int) -> Grid:
        """Return the grid of every ``step``-th point of each axis."""
        if self.kind == "curvilinear":
            return Grid(self.kind, self.lat[::step, ::step], self.lon[::step, ::step])
        return Grid(self.kind, self.lat[::step], self.lon[::step])

    def weights(self) -> np.ndarray | None:
        """Areas of the cells of each point, in any unit, in the shape of a field.

        None where the neighbours of a point are not known.
        """
        if self.kind not in ("regular", "curvilinear"):
            return None
        if self.kind == "regular":
            lat, lon = np.meshgrid(self.lat, self.lon, indexing="ij")
        else:
            lat, lon = self.lat, self.lon
        if min(lat.shape) < 2:
            return np.asarray(np.cos(np.radians(lat)))
        points = on_sphere(lat, lon)
        along_y, along_x = np.gradient(points, axis=(0, 1))
        return np.asarray(np.linalg.norm(np.cross(along_y, along_x), axis=-1))


def grid_of(field: xr.DataArray, leading: tuple[str, ...]) -> Grid:
    """Find the grid of a field, whose other dimensions are ``leading``."""
    dims = tuple(str(dim) for dim in field.dims if dim not in leading)
    lat, lon = (_coordinate(field, dims, name) for name in ("lat", "lon"))
    if lat is not None and lon is not None:
        y, x = np.asarray(lat.values, float), np.asarray(lon.values, float)
        if len(dims) == 2 and (lat.dims, lon.dims) == ((dims[0],), (dims[1],)):
            return Grid("regular", y, np.unwrap(x, period=360))
        if len(dims) == 2 and lat.dims == lon.dims == dims:
            return Grid("curvilinear", y, x)
        if lat.dims == lon.dims == dims:
            return Grid("points", y.ravel(), x.ravel())
    sizes = [field.sizes[dim] for dim in dims]
    rows, columns = sizes if len(sizes) == 2 else (1, int(np.prod(sizes)))
    return Grid("unknown", np.arange(float(rows)), np.arange(float(columns)))


def on_sphere(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Points of the unit sphere, [..., 3], from degrees."""
    lat, lon = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _coordinate(field: xr.DataArray, dims: tuple[str, ...], name: str) -> xr.DataArray | None:
    """Find the latitude or longitude among the coordinates of a field."""
    full = {"lat": "latitude", "lon": "longitude"}[name]
    for key in field.coords:
        values: xr.DataArray = field.coords[key]
        named = str(key) == name or str(key).startswith(f"{name}_")
        is_it = values.attrs.get("standard_name") == full or named
        if is_it and values.dims and set(values.dims) <= set(dims):
            return values
    return None
