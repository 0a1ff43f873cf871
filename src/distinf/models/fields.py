"""Fields on a global grid: from a file, random, or constant in time.

Earth2Studio's own sources and prognostics of this kind take objects, such as coordinates and open
files. These take numbers and names, which a config can hold.
"""

from __future__ import annotations

import os
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
_WINDS = {f"{wind}{height}": f"{wind}{height}m" for wind in "uv" for height in (10, 100)}
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
    each level is a variable, such as ``u850``; ``u10`` is ``u10m``. Dimensions are ``time``,
    ``lat``, ``lon`` and, in a forecast, ``lead_time`` and ``ensemble``. Without ``lead_time``, the
    valid time is selected. A step that is not complete in a store of distinf is refused.

    Parameters
    ----------
    path : str
        The file or store, or a folder of files that follow one another in a coordinate.

    Raises
    ------
    ConfigError
        If it does not exist, cannot be read or has no such fields.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        if not os.path.exists(path):
            raise ConfigError(f"{path} does not exist")
        try:
            data = _open(Path(path))
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
        self._fields = dict(_by_level({str(k): a for k, a in data.items() if a.dtype.kind == "f"}))
        self._marks = {k: data[m] for k, a in self._fields.items() if (m := _marks(a)) in data}
        for name, array in list(self._fields.items()):
            if "variable" in array.dims:
                del self._fields[name]
                for v in array["variable"].values:
                    self._fields[str(v)] = array.sel(variable=v, drop=True)
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
        return array.transpose("time", "lead_time", "variable", ...)

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


def _open(path: Path) -> Any:
    if any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        return xr.open_zarr(path)
    if not path.is_dir():
        return _open_files([path]) if path.suffix in _GRIB else xr.open_dataset(path)
    files = sorted(own for own in path.iterdir() if own.suffix in (*_NETCDF, *_GRIB))
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
    """Give the fields of a file dimensions of which cfgrib found only one value."""
    if "time" in data.coords and "valid_time" not in data.dims:
        data = data.drop_vars("valid_time", errors="ignore")
    single = [dim for dim in ("time", "step", *_LEVELS) if dim in data.coords]
    return data.expand_dims([dim for dim in single if not data[dim].dims])


def _by_level(fields: dict[str, xr.DataArray]) -> Iterator[tuple[str, xr.DataArray]]:
    """Yield each variable under Earth2Studio's name, levels of pressure one by one."""
    for name, array in fields.items():
        dim = next((dim for dim in _LEVELS if dim in array.dims), None)
        if dim is None:
            yield _WINDS.get(name, name), array
            continue
        per_hpa = 100 if array[dim].attrs.get("units") == "Pa" else 1
        for level in array[dim].values:
            yield f"{name}{level / per_hpa:g}", array.sel({dim: level}, drop=True)


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
