"""What the data sources share: reading a request and answering it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from distinf.models.sphere import Array

Times = datetime | np.datetime64 | Sequence[datetime] | np.ndarray[Any, Any]
Names = str | Sequence[str] | np.ndarray[Any, Any]


def source_array(
    time: Times,
    variable: Names,
    lat: Array,
    lon: Array,
    available: list[str],
    fields: Callable[[np.datetime64], Array],
) -> xr.DataArray:
    """Return a data source's fields with dims ``time, variable, lat, lon``, float32.

    ``fields`` returns all ``available`` variables at a time, of shape (variable, lat, lon). Times
    without a zone are UTC. Raises `ValueError` if a variable is not available.
    """
    times = as_times(time)
    names = [str(name) for name in np.atleast_1d(np.asarray(variable))]
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ValueError(
            f"no variable {', '.join(unknown)} in this source; it has {', '.join(available)}"
        )
    rows = [available.index(name) for name in names]
    values = np.stack([fields(at)[rows] for at in times]).astype(np.float32)
    return xr.DataArray(
        values,
        dims=("time", "variable", "lat", "lon"),
        coords={"time": times, "variable": names, "lat": lat, "lon": lon},
    )


def as_times(time: Times) -> np.ndarray[Any, Any]:
    """Return one or several times as an array of datetime64[ns], UTC."""
    given = time if isinstance(time, Sequence | np.ndarray) else [time]
    times = pd.to_datetime(np.asarray(given).ravel(), utc=True).tz_localize(None)
    return np.asarray(times, dtype="datetime64[ns]")
