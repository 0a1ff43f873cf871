"""Real winds from files as initial conditions of the shallow-water model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cf_xarray  # noqa: F401  (the .cf accessor)
import numpy as np
import torch
import xarray as xr

from distinf.errors import ConfigError
from distinf.models.balance import balanced_geopotential
from distinf.models.fields import HECTOPASCALS
from distinf.models.source import GridSource
from distinf.models.sphere import GRAVITY, Array, SphereGrid
from distinf.parameters import parse_interval

log = logging.getLogger("distinf")

_NAMES = {
    "eastward_wind": ("u", "uwnd", "ua", "U", "u_wind", "u_component_of_wind"),
    "northward_wind": ("v", "vwnd", "va", "V", "v_wind", "v_component_of_wind"),
}
_TIMES = ("time", "valid_time")
_LEVELS = ("level", "lev", "plev", "pressure_level", "isobaricInhPa", "isobaricInPa", "pressure")
_LISTED = 12  # times that a message shows
_METRES_PER_SECOND = ("m s-1", "m/s", "m s**-1", "m s^-1", "meters/second", "m.s-1")


class NetCDFWinds(GridSource):
    """Winds of files that xarray opens, with a geopotential in balance with them.

    Variables and dimensions are found by CF attributes, else by common names. The wind is regridded
    by vector spherical harmonics, which is exact for the scales that both grids resolve, also at
    the poles, where interpolation of components is not. Its divergent part is left out, and the
    geopotential solves the nonlinear balance equation (see
    `distinf.models.balance.balanced_geopotential`), so that the forecast starts without large
    gravity waves.

    Parameters
    ----------
    paths : str or list of str
        Files that hold u and v on one regular global latitude-longitude grid.
    level : float, optional
        A level of the files, in their units. By default the only one.
    month : int, optional
        A calendar month (1 to 12), for every requested time: the mean of the files' times in it. By
        default the files must have the requested time; files without times serve every request.
    nlat, nlon : int, optional
        Rows from 90 to -90 degrees with both poles, and columns eastward from 0, of the result.
    name_level : int, optional
        Pressure level in hPa in the names of the variables, as in `ShallowWater`.
    mean_depth : float, optional
        Mean depth of the layer in m.
    divergent : bool, optional
        Whether to keep the wind's divergent part; the geopotential is not balanced against it.
    time_tolerance : str, optional
        Largest distance of the requested time from the nearest one of the files, such as ``"3h"``.
        By default they must be the same.

    Raises
    ------
    ConfigError
        If a file cannot be opened, has no u or v in m s-1 on a regular global grid, does not have
        the level, has several and none is chosen, or its level in hPa is not ``name_level``; names
        the file and what would be right.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        level: float | None = None,
        month: int | None = None,
        nlat: int = 256,
        nlon: int = 512,
        name_level: int = 850,
        mean_depth: float = 10e3,
        divergent: bool = False,
        time_tolerance: str | None = None,
    ) -> None:
        paths = [str(path) for path in ([paths] if isinstance(paths, str) else paths)]
        self._names = ", ".join(paths)
        if not paths:
            raise ConfigError("data.paths is empty: name one file or several")
        if month is not None and month not in range(1, 13):
            raise ConfigError(f"data.month={month}: must be 1 to 12")
        if level is not None and (isinstance(level, bool) or not isinstance(level, int | float)):
            raise ConfigError(f"data.level={level}: must be a number, in the file's units, or null")
        self._level, self._month, self._divergent = level, month, divergent
        self._name_level = name_level
        self._tolerance: np.timedelta64 = np.timedelta64(0, "ns")
        if time_tolerance is not None:
            self._tolerance = parse_interval(time_tolerance, "data.time_tolerance")
        self._warning: str | None = None
        self._mean = mean_depth * GRAVITY
        super().__init__(nlat, nlon, name_level)
        files = [(path, _open(path)) for path in paths]
        self._u, level_of_u = self._prepare(*_find(files, "eastward_wind"))
        self._v, level_of_v = self._prepare(*_find(files, "northward_wind"))
        self._check_level(level_of_u, level_of_v)
        for dim in ("lat", "lon"):
            if not np.array_equal(self._u[dim].values, self._v[dim].values):
                raise ConfigError(f"{self._names}: u and v are on different grids")
        try:
            self._grid = SphereGrid.from_coords(self._u.lat.values, self._u.lon.values)
        except ValueError as error:
            raise ConfigError(f"{self._names}: {error}") from None

    def check_time(self, time: np.datetime64) -> None:
        """Raise `ConfigError` if the files do not have a time; reads no data."""
        self._both(time)

    def _prepare(self, path: str, wind: xr.DataArray) -> tuple[xr.DataArray, list[float]]:
        """Rename the dimensions to lat, lon and time, and choose the level; return it in hPa, too.

        A level without units has two possible values; one that is no pressure has none.
        """
        units = wind.attrs.get("units", "")
        if units.strip() not in _METRES_PER_SECOND:
            raise ConfigError(f"{path}: {wind.name} has units {units!r}; m s-1 is needed")
        time = _coordinate(wind, "time", _TIMES)
        if time is not None and time not in wind.dims and _has_times(wind[time]):
            wind = wind.expand_dims(time)
        names = {}
        for ours, cf, common in (
            ("lat", "latitude", ("lat", "latitude", "y")),
            ("lon", "longitude", ("lon", "longitude", "x")),
            ("time", "time", _TIMES),
        ):
            found = _coordinate(wind, cf, common)
            if found is not None and found in wind.dims:
                names[found] = ours
            elif ours != "time":
                raise ConfigError(
                    f"{path}: {wind.name} has no one-dimensional {cf}; its dimensions are "
                    f"{', '.join(map(str, wind.dims))}"
                )
        new = {name: ours for name, ours in names.items() if name != ours}
        wind = wind.drop_vars([ours for ours in new.values() if ours in wind.coords]).rename(new)
        if "time" in wind.dims and not _has_times(wind["time"]):
            raise ConfigError(
                f"{path}: the times of {wind.name} have no units, such as hours since 1970-01-01"
            )
        level = _coordinate(wind, "vertical", _LEVELS)
        is_level = level is not None
        if level is not None and level not in wind.dims:
            wind = wind.expand_dims(level)
        others = [str(d) for d in wind.dims if d not in ("lat", "lon", "time", level)]
        unnamed = level is None and len(others) == 1
        if unnamed and (wind.sizes[others[0]] > 1 or self._level is not None):
            level = others.pop()
        for other in others:
            if wind.sizes[other] > 1:
                raise ConfigError(f"{path}: {wind.name} has several {other}: leave one in the file")
        wind = wind.squeeze(others)
        pressures: list[float] = []
        if level is not None:
            wind = self._choose(path, wind, level)
            if level in wind.coords:
                pressures = _hectopascals(wind[level], is_level)
                wind = wind.drop_vars(level)
        elif self._level is not None:
            raise ConfigError(
                f"{path}: data.level={self._level:g}: {wind.name} has no level; set data.level=null"
            )
        return wind.transpose(..., "lat", "lon"), pressures

    def _choose(self, path: str, wind: xr.DataArray, dim: str) -> xr.DataArray:
        values = wind[dim].values
        if values.size == 1 and self._level is None:
            return wind.squeeze(dim)
        if self._level is None or not np.any(np.isclose(values.astype(float), self._level)):
            given = "" if self._level is None else f", not {self._level:g}"
            raise ConfigError(
                f"{path}: choose data.level from {dim} {', '.join(map(str, values))}{given}"
            )
        return wind.isel({dim: int(np.abs(values.astype(float) - self._level).argmin())})

    def _check_level(self, of_u: list[float], of_v: list[float]) -> None:
        """Raise or prepare a warning if the level is another one than in the variables' names."""
        if of_u and of_v and not np.any(np.isclose(np.array(of_u)[:, None], of_v)):
            raise ConfigError(f"{self._names}: u is at {of_u[0]:g} hPa, but v at {of_v[0]:g} hPa")
        pressures = of_u or of_v
        if not pressures or np.any(np.isclose(pressures, self._name_level)):
            return
        label = (
            f"labelled {self._variables[0]} (data.name_level={self._name_level}, which is "
            "prognostic.level by default)"
        )
        right = f"set prognostic.level={pressures[0]:g}"
        if self._level is not None:
            raise ConfigError(
                f"{self._names}: data.level={self._level:g} is {pressures[0]:g} hPa, but would be "
                f"{label}: {right}, or choose another level"
            )
        self._warning = f"{self._names}: the wind at {pressures[0]:g} hPa is {label}: {right}"

    def _both(self, time: np.datetime64) -> list[xr.DataArray]:
        """Select u and v at the same time of the files."""
        both = [self._at(self._u, time), self._at(self._v, time)]
        taken = [str(wind["time"].values)[:16] for wind in both if "time" in wind.coords]
        if len(set(taken)) > 1:
            raise ConfigError(
                f"{self._names}: next to {str(time)[:16]}, u is at {taken[0]}, but v at "
                f"{taken[1]}: choose a smaller data.time_tolerance, or a time that both have"
            )
        return both

    def _at(self, wind: xr.DataArray, time: np.datetime64) -> xr.DataArray:
        if "time" not in wind.dims:
            if self._month is not None:
                raise ConfigError(
                    f"{self._names} has no times, so no month {self._month}: leave data.month null"
                )
            return wind
        if self._month is not None:
            months = wind.time.dt.month.values
            if self._month not in months:
                raise ConfigError(
                    f"{self._names} has no time in month {self._month} (data.month); "
                    f"it has the months {sorted(set(months.tolist()))}"
                )
            return wind.isel(time=np.flatnonzero(months == self._month)).mean("time")
        if wind.time.dtype.kind != "M":
            raise ConfigError(
                f"{self._names} has times of the calendar {wind.time.dt.calendar}: "
                "choose a calendar month by data.month"
            )
        # datetime64[us] has a longer range than datetime64[ns].
        times = wind.time.values.astype("datetime64[us]")
        distances = np.abs(times - time.astype("datetime64[us]"))
        distances[np.isnat(distances)] = np.timedelta64(2**62, "us")
        nearest = int(distances.argmin()) if times.size else 0
        if times.size == 0 or distances[nearest] > self._tolerance:
            shown = [text.removesuffix("T00:00") for text in np.datetime_as_string(times, unit="m")]
            if len(shown) > _LISTED:
                shown = [f"{len(shown)} from {min(shown)} to {max(shown)}, next {shown[nearest]}"]
            raise ConfigError(
                f"{self._names} has no time {str(time)[:16]}; its times are "
                f"{', '.join(shown)}: choose one of them by parameters.time, the nearest by "
                "data.time_tolerance, such as 3h, or a calendar month by data.month"
            )
        return wind.isel(time=nearest)

    def _fields(self, time: np.datetime64) -> Array:
        if self._warning is not None:  # once
            log.warning(self._warning)
            self._warning = None
        wind = np.stack([wind.values for wind in self._both(time)])
        if not np.isfinite(wind).all():
            raise ConfigError(f"{self._names}: missing values in the wind at {time}")
        u, v = self._regrid(torch.from_numpy(wind.astype(np.float64)))
        return np.stack([u, v, balanced_geopotential(u, v, self._mean)])

    @torch.no_grad()
    def _regrid(self, wind: torch.Tensor) -> tuple[Array, Array]:
        """Regrid the wind (2, lat, lon) to the model's grid, by default without divergence."""
        from torch_harmonics import InverseRealVectorSHT, RealVectorSHT

        nlat, nlon = self._lat.size, self._lon.size
        lmax = min(self._grid.largest_lmax, (min(nlat, nlon) + 2) // 3)
        size = {"lmax": lmax, "mmax": lmax, "csphase": False}
        shape = (self._grid.quadrature_nlat, self._grid.nlon)
        forward = RealVectorSHT(*shape, grid=self._grid.quadrature, **size).double()
        inverse = InverseRealVectorSHT(nlat, nlon, grid="equiangular", **size).double()
        spectrum = forward(self._grid.to_quadrature(wind))
        # The transform assumes that the first column is at longitude 0.
        start = np.radians(float(self._u.lon.values[0]))
        order = torch.arange(lmax, dtype=torch.float64)
        spectrum = spectrum * torch.polar(torch.ones_like(order), -order * start)
        if not self._divergent:
            spectrum[1] = 0
        u, v = inverse(spectrum).numpy()
        return u, v


def _open(path: str) -> xr.Dataset:
    if not Path(path).exists():
        raise ConfigError(f"data.paths: {path} does not exist")
    try:
        return xr.open_dataset(path)
    except Exception as error:
        raise ConfigError(f"data.paths: xarray cannot open {path}: {error}") from None


def _find(files: list[tuple[str, xr.Dataset]], standard_name: str) -> tuple[str, xr.DataArray]:
    for path, dataset in files:
        for name, variable in dataset.data_vars.items():
            if variable.attrs.get("standard_name") == standard_name:
                return path, dataset[name]
    for path, dataset in files:
        for name in _NAMES[standard_name]:
            if name in dataset:
                return path, dataset[name]
    held = "; ".join(f"{path} has {', '.join(map(str, ds.data_vars))}" for path, ds in files)
    raise ConfigError(
        f"no {standard_name} found (by that standard_name, or named "
        f"{', '.join(_NAMES[standard_name])}): {held}"
    )


def _coordinate(wind: xr.DataArray, cf: str, common: Sequence[str]) -> str | None:
    """Name of a dimension, else of a scalar, by CF attributes, else by common names."""
    names: list[Any] = [*wind.cf.coordinates.get(cf, []), *common]
    scalars = [name for name, values in wind.coords.items() if values.ndim == 0]
    found = [name for there in (wind.dims, scalars) for name in names if name in there]
    return str(found[0]) if found else None


def _has_times(values: xr.DataArray) -> bool:
    """Whether xarray decoded a coordinate to times, of NumPy or of another calendar."""
    return values.dtype.kind == "M" or all(hasattr(v, "calendar") for v in values.values.flat)


def _hectopascals(level: xr.DataArray, is_level: bool) -> list[float]:
    """Return the possible values of a level in hPa; without units it may be in hPa or in Pa."""
    units = str(level.attrs.get("units", "")).strip().lower()
    if units in HECTOPASCALS:
        return [float(level) * HECTOPASCALS[units]]
    return [float(level), float(level) / 100] if is_level and not units else []
