"""The interface of the data sources on a global grid."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from distinf.models.sphere import Array, regular_grid

Times = datetime | np.datetime64 | Sequence[datetime] | np.ndarray[Any, Any]
Names = str | Sequence[str] | np.ndarray[Any, Any]


class GridSource:
    """A data source of wind and geopotential on a grid with both poles; subclasses give `_fields`.

    Variables are ``u{level}``, ``v{level}`` (m s-1) and ``z{level}`` (geopotential, m2 s-2).
    """

    def __init__(self, nlat: int, nlon: int, level: int) -> None:
        self._lat, self._lon = regular_grid(nlat, nlon)
        self._variables = [f"u{level}", f"v{level}", f"z{level}"]

    def __call__(self, time: Times, variable: Names) -> xr.DataArray:
        """Return variables at times [time, variable, lat, lon], float32.

        A time without a zone is UTC. Raises `ConfigError` if the source does not have a time or has
        missing values there, `ValueError` if it does not have a variable.
        """
        in_utc = pd.to_datetime(np.asarray(time).ravel(), utc=True).tz_localize(None)
        times = np.asarray(in_utc, dtype="datetime64[ns]")
        names = [str(name) for name in np.atleast_1d(np.asarray(variable))]
        unknown = [name for name in names if name not in self._variables]
        if unknown:
            raise ValueError(
                f"no variable {', '.join(unknown)} in this source; "
                f"it has {', '.join(self._variables)}"
            )
        rows = [self._variables.index(name) for name in names]
        values = np.stack([self._fields(at)[rows] for at in times]).astype(np.float32)
        coords = {"time": times, "variable": names, "lat": self._lat, "lon": self._lon}
        return xr.DataArray(values, coords, list(coords))

    async def fetch(self, time: Times, variable: Names) -> xr.DataArray:
        """Return the same, for Earth2Studio's asynchronous readers."""
        return self(time, variable)

    def _fields(self, time: np.datetime64) -> Array:
        """Return all variables at a time, of shape (variable, lat, lon)."""
        raise NotImplementedError
