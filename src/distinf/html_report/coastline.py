"""Coastlines of the world, for maps.

The data is Natural Earth's land at 1:110 million (public domain, https://www.naturalearthdata.com),
from version 2.0.2 of the npm package ``world-atlas``, rounded to 0.01 degrees.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np

_FILE = "coastline_110m.npz"  # points [point, (lon, lat)] in 0.01 degrees; where each line ends


@cache
def coastlines() -> tuple[np.ndarray, ...]:
    """Return the lines, each [point, (lon, lat)] in degrees, float64; lon is within -180 to 180."""
    path = resources.files(__package__) / _FILE
    with path.open("rb") as file, np.load(file) as data:
        return tuple(np.split(data["points"] / 100.0, data["ends"][:-1]))
