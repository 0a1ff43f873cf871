"""Fields on a global grid: from a file, random, or constant in time.

Earth2Studio's own sources and prognostics of this kind take objects, such as coordinates and open
files. These take numbers and names, which a config can hold.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from distinf.coords import Coords
from distinf.errors import ConfigError
from distinf.loading import import_first

_LEVELS = ("pressure_level", "isobaricInhPa", "plev", "level")
_STEP = ("time", "valid_time", "step", "lead_time")
_METRES = r"(?<!\d)(\d+)[ _-]?m(?:et(?:re|er)s?)?(?![a-z])"
_HIGHEST = 1100  # hPa; above this, a level without units cannot be in hPa
HECTOPASCALS = {  # one of each unit of pressure, in small letters
    **dict.fromkeys(("hpa", "hectopascal", "hectopascals"), 1.0),
    **dict.fromkeys(("mb", "mbar", "millibar", "millibars"), 1.0),
    **dict.fromkeys(("pa", "pascal", "pascals"), 0.01),
    "kpa": 10.0,
}
_NETCDF, _GRIB = (".nc", ".nc4"), (".grib", ".grib2", ".grb", ".grb2")


def global_grid(nlat: int, nlon: int, both_poles: bool | None = None) -> Coords:
    """Return ``lat`` from north to south and ``lon`` from 0 eastward, in degrees, float64.

    By default as Earth2Studio's models have them: with both poles if ``nlat`` is odd (721),
    without the south pole if it is even (720).
    """
    both_poles = nlat % 2 == 1 if both_poles is None else both_poles
    return OrderedDict(
        lat=np.linspace(90.0, -90.0, nlat, endpoint=both_poles),
        lon=np.linspace(0.0, 360.0, nlon, endpoint=False),
    )


class FileSource:
    """Fields of any file, folder of files or Zarr store that xarray opens.

    Variables have Earth2Studio's names: each is one array, or one array has a dimension
    ``variable``. Of an array on pressure levels, as the Climate Data Store and cfgrib have them,
    each level is a variable, such as ``u850``; arrays on other levels are left out. ``u10`` is
    ``u10m``, and so are ``v10``, ``u100`` and ``v100``, if its ``long_name`` says metres: else it
    is the wind at 10 hPa. Dimensions are, in any order, ``time``, ``lat``, ``lon`` and, in a
    forecast, ``lead_time`` and ``ensemble``; ``time`` and ``lead_time`` may have one value each and
    no dimension. Without ``lead_time``, the valid time is selected. A step that is not complete in
    a store of distinf is refused.

    Parameters
    ----------
    path : str
        The file or store, the URL of a Zarr store, or a folder of files that follow one another in
        a coordinate.

    Raises
    ------
    ConfigError
        If it does not exist, cannot be read, has no such fields or two of one name.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        if "://" not in path and not os.path.exists(path):
            raise ConfigError(f"{path} does not exist")
        try:
            data = _with_dimensions(_open(path))
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        names = {"latitude": "lat", "longitude": "lon", "valid_time": "time", "step": "lead_time"}
        data = data.rename({k: v for k, v in names.items() if k in data.dims and v not in data})
        missing = [dim for dim in ("time", "lat", "lon") if dim not in data.coords]
        if missing:
            raise ConfigError(
                f"{path} has no {', '.join(missing)}; its coordinates are "
                f"{', '.join(map(str, data.coords))}"
            )
        if data["lon"].ndim == 1 and (data["lon"] < 0).any():  # models count from 0 to 360
            data = data.assign_coords(lon=data["lon"] % 360).sortby("lon")
        # Of a curvilinear grid, both have two dimensions.
        self._grid_dims = list(dict.fromkeys([*data["lat"].dims, *data["lon"].dims]))
        self._fields: dict[str, xr.DataArray] = {}
        for name, array in _by_name({str(k): a for k, a in data.items() if a.dtype.kind == "f"}):
            if name in self._fields:
                raise ConfigError(
                    f"{path} has two fields {name}, {_words(self._fields[name])} and "
                    f"{_words(array)}: give one of them another name"
                )
            self._fields[name] = array
        if not self._fields:
            raise ConfigError(
                f"{path} has no field on levels of pressure or without levels; its arrays are "
                f"{', '.join(map(str, data))}"
            )
        self._marks = {k: data[m] for k, a in self._fields.items() if (m := _marks(a)) in data}
        self.coords = data.coords

    @property
    def grid(self) -> Coords:
        """Latitudes and longitudes in degrees."""
        return OrderedDict((dim, self.coords[dim].values) for dim in ("lat", "lon"))

    @property
    def variables(self) -> list[str]:
        """Names of its variables."""
        return list(self._fields)

    def member(self, number: int) -> FileSource:
        """Return the fields of one member of an ensemble.

        Raises `ConfigError` if the file does not have it.
        """
        there: Any = self.coords["ensemble"].values if "ensemble" in self.coords else []
        self._check("members", [number], there)
        own = copy(self)
        own._fields, own._marks = (
            {
                k: a.sel(ensemble=number, drop=True) if "ensemble" in a.dims else a
                for k, a in arrays.items()
            }
            for arrays in (self._fields, self._marks)
        )
        return own

    def check_time(self, time: np.datetime64) -> None:
        """Raise `ConfigError` if an initial time is not in the file; it lists the file's times."""
        self._check("times", [time], self.coords["time"].values)

    def __call__(self, time: Any, lead_time: Any, variable: Any) -> xr.DataArray:
        """Read fields [time, lead_time, variable, lat, lon] for initial times and lead times.

        Raises `ConfigError` if some are not in the file or not complete there; it lists those that
        are.
        """
        times = np.atleast_1d(np.asarray(time, dtype="datetime64[ns]"))
        leads = np.atleast_1d(np.asarray(lead_time, dtype="timedelta64[ns]"))
        names = [str(v) for v in np.atleast_1d(variable)]
        self._check("variables", names, self.variables)
        if any("ensemble" in self._fields[name].dims for name in names):
            raise ConfigError(
                f"{self._path} has an ensemble, of which one state cannot be read; recipe=archive "
                "reads its members"
            )
        if "lead_time" in self.coords:
            self._check("times", times, self.coords["time"].values)
            self._check("lead times", leads, self.coords["lead_time"].values)
            self._check_complete(names, times, leads)
            array = _join([self._fields[v].sel(time=times, lead_time=leads) for v in names])
        else:
            valid = times[:, np.newaxis] + leads
            self._check("times", valid.ravel(), self.coords["time"].values)
            states = [_join([self._fields[v].sel(time=row) for v in names]) for row in valid]
            states = [x.rename(time="lead_time").assign_coords(lead_time=leads) for x in states]
            array = _join(states, "time")
        array = array.assign_coords(time=times, variable=names)
        return array.transpose("time", "lead_time", "variable", ..., *self._grid_dims)

    def _check_complete(self, names: list[str], times: np.ndarray, leads: np.ndarray) -> None:
        for name in names:
            if name in self._marks:
                marks = self._marks[name].sel(time=times, lead_time=leads)
                if not marks.values.all():
                    raise ConfigError(
                        f"{self._path}: {name} is not complete at {times[0]} "
                        f"+{leads[0] / np.timedelta64(1, 'h'):g} h; its run can be continued by "
                        "output.mode=resume"
                    )

    def _check(self, what: str, wanted: Any, there: Any) -> None:
        missing = [str(w) for w in wanted if w not in there]
        if missing:
            have = [str(t) for t in there]
            shown = ", ".join(have) if len(have) <= 40 else f"{have[0]} to {have[-1]}"
            raise ConfigError(
                f"{self._path} does not have the {what} {', '.join(missing)}; it has {shown}"
            )


def _open(path: str) -> Any:
    folder = Path(path)
    if "://" in path or any((folder / name).exists() for name in ("zarr.json", ".zgroup")):
        return xr.open_zarr(path)
    if not folder.is_dir():
        return _open_files([folder]) if folder.suffix in _GRIB else xr.open_dataset(path)
    files = sorted(own for own in folder.iterdir() if own.suffix in (*_NETCDF, *_GRIB))
    if not files:
        suffixes = ", ".join((*_NETCDF, *_GRIB))
        raise ConfigError(f"{path} is neither a Zarr store nor a folder of {suffixes}")
    return _open_files(files)


def _open_files(files: list[Path]) -> Any:
    options: dict[str, Any] = {}
    if files[0].suffix in _GRIB:  # cfgrib would write an index beside each file
        options = {"engine": "cfgrib", "backend_kwargs": {"indexpath": ""}}
    return xr.open_mfdataset(
        files,
        combine="by_coords",
        data_vars="minimal",
        join="exact",
        preprocess=_with_dimensions,
        **options,
    )


def _with_dimensions(data: xr.Dataset) -> xr.Dataset:
    """Give the fields of a file the dimensions of one value that cfgrib and others leave out."""
    if "valid_time" in data.dims:
        data = data.drop_vars({"time", "step"} & set(data.coords) - set(data.dims))
    elif "time" in data.coords:
        data = data.drop_vars("valid_time", errors="ignore")
    single = [k for k in _STEP if k in data.coords and not data[k].dims]
    levels = [k for k in _LEVELS if k in data.coords and not data[k].dims]
    if not single and not levels:
        return data
    # A new dimension would read an array without chunks.
    data = data.chunk({k: 1 for k in (*_STEP, *_LEVELS) if k in data.dims}).expand_dims(single)
    for dim in levels:
        # A name with a number, such as t850 or t2m, says the level itself.
        without = {k: a for k, a in data.items() if not re.search(r"\d", str(k))}
        data = data.drop_vars([*without, dim]).assign(xr.Dataset(without).expand_dims(dim))
    return data


def _by_name(fields: dict[str, xr.DataArray]) -> Iterator[tuple[str, xr.DataArray]]:
    """Yield each variable under Earth2Studio's name, one by one also of arrays of several."""
    for name, array in fields.items():
        dim = next((dim for dim in (*_LEVELS, "variable") if dim in array.dims), None)
        if dim is None:
            yield (f"{name}m" if _is_in_metres(name, array) else name), array
        elif dim == "variable":
            for v in array[dim].values:
                yield str(v), array.sel({dim: v}, drop=True)
        else:
            for i, pressure in enumerate(_pressures(array[dim])):
                yield f"{name}{pressure:g}", array.isel({dim: i}, drop=True)


def _is_in_metres(name: str, array: xr.DataArray) -> bool:
    """Whether a wind such as u100 is that at 100 m, as of cfgrib, and not that at 100 hPa."""
    wind = re.fullmatch(r"[uv](100?)", name)
    return wind is not None and wind[1] in re.findall(_METRES, _words(array), re.IGNORECASE)


def _words(array: xr.DataArray) -> str:
    return str(array.attrs.get("long_name", "one without long_name"))


def _pressures(level: xr.DataArray) -> np.ndarray:
    """Return levels in hPa; none if they are no pressures."""
    units = str(level.attrs.get("units", "")).strip().lower()
    values = level.values.astype(np.float64)
    if units:
        return values * HECTOPASCALS[units] if units in HECTOPASCALS else values[:0]
    words = "".join(str(level.attrs.get(k, "")) for k in ("standard_name", "long_name")).lower()
    is_pressure = not words or "pressure" in words or "isobar" in words
    return values if is_pressure and (values <= _HIGHEST).all() else values[:0]


def _marks(array: xr.DataArray) -> str:
    """Name of the array of completeness marks of a variable in a store of distinf."""
    return f"{array.attrs.get('diagnostic')}_complete"


def _join(arrays: list[xr.DataArray], dim: str = "variable") -> xr.DataArray:
    return xr.concat(arrays, dim, coords="minimal", compat="override")


class RandomFields:
    """Independent normal noise on a `global_grid`, the same for a seed, time and variable."""

    def __init__(self, nlat: int = 721, nlon: int = 1440, seed: int = 0) -> None:
        self.grid = global_grid(nlat, nlon)
        self._seed = seed

    def __call__(self, time: Any, variable: Any) -> xr.DataArray:
        """Return random fields [time, variable, lat, lon], float32."""
        times = np.atleast_1d(np.asarray(time, dtype="datetime64[ns]"))
        names = [str(v) for v in np.atleast_1d(variable)]
        shape = [len(axis) for axis in self.grid.values()]
        data = np.empty([len(times), len(names), *shape], dtype=np.float32)
        for i, when in enumerate(times.astype("datetime64[s]").astype(np.int64)):
            for j, name in enumerate(names):
                # A time before 1970 is a negative number, which cannot be a seed.
                entropy = [self._seed, int(when) % 2**63, zlib.crc32(name.encode())]
                np.random.default_rng(entropy).standard_normal(out=data[i, j], dtype=np.float32)
        coords = {"time": times, "variable": names, **self.grid}
        return xr.DataArray(data, coords, list(coords))


def persistence(variable: list[str], nlat: int = 721, nlon: int = 1440, step: int = 6) -> Any:
    """Return Earth2Studio's Persistence, which keeps the initial state, on a `global_grid`.

    ``step`` is in hours.
    """
    import_first("earth2studio.models.px")
    from earth2studio.models.px import Persistence

    return Persistence(list(variable), global_grid(nlat, nlon), dt=np.timedelta64(step, "h"))


def replay(path: str, variable: list[str] | None = None, step: int | None = None) -> Any:
    """Return Earth2Studio's DataReplay, which reads states from a store instead of computing them.

    ``path`` is as for `FileSource`; the initial state should come from there, too
    (``data=replayed``). ``variable`` is by default all of the store's, ``step``, in hours, the
    store's. Raises `ConfigError` if the store has only one state and ``step`` is not given.
    """
    import_first("earth2studio.models.px")
    from earth2studio.models.px import DataReplay

    source = FileSource(path)
    axis = "lead_time" if "lead_time" in source.coords else "time"
    when = source.coords[axis].values
    if step is None and len(when) < 2:
        raise ConfigError(f"{path} has one {axis} only: set prognostic.step, in hours")
    return DataReplay(
        source,
        list(variable or source.variables),
        source.grid,
        np.timedelta64(step, "h") if step is not None else when[1] - when[0],
    )
