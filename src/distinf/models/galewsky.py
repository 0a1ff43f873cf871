"""The barotropically unstable jet of Galewsky, Scott and Polvani as a data source."""

from __future__ import annotations

import numpy as np
from numpy.polynomial.legendre import leggauss

from distinf.models.source import GridSource
from distinf.models.sphere import EARTH_OMEGA, EARTH_RADIUS, GRAVITY, Array

_SPEED = 80.0  # m s-1
_SOUTH = np.pi / 7  # edges of the jet
_NORTH = np.pi / 2 - _SOUTH
_DEPTH = 10e3  # m


class GalewskyJet(GridSource):
    """Initial state of the test case of Galewsky, Scott and Polvani (2004), Tellus 56A, 429-440.

    A zonal jet of 80 m s-1 at 45 degrees north in exact balance with its height field, whose
    mean is 10 km, and a bump of 120 m in that field at longitude 0 from which a wave train grows:
    within six days the jet rolls up into vortices. All of it follows the paper's formulas. (The
    initial condition that comes with torch-harmonics differs: the bump is four times as wide in
    latitude, lies at 180 degrees, and the height is truncated.)

    The state is the same at every time asked for.

    Parameters
    ----------
    nlat, nlon : int, optional
        Rows from 90 to -90 degrees with both poles, and columns eastward from 0.
    level : int, optional
        Pressure level in hPa that the variables are labelled with, as in `ShallowWater`.
    perturbation : bool, optional
        Whether to add the bump. Without it the jet is a steady state.

    Raises
    ------
    ValueError
        If the grid has fewer than 8 x 16 points.
    """

    def __init__(
        self, nlat: int = 256, nlon: int = 512, level: int = 850, perturbation: bool = True
    ) -> None:
        if nlat < 8 or nlon < 16:
            raise ValueError(f"the grid must have at least 8 x 16 points, not {nlat} x {nlon}")
        super().__init__(nlat, nlon, level)
        self._perturbation = perturbation

    def _fields(self, _: np.datetime64) -> Array:
        lat, lon = np.radians(self._lat), np.radians(self._lon)
        u = np.repeat(_jet(lat)[:, None], lon.size, axis=1)
        height = np.repeat(_balanced_height(lat)[:, None], lon.size, axis=1)
        if self._perturbation:
            height += _bump(lat[:, None], (lon + np.pi) % (2 * np.pi) - np.pi)
        return np.stack([u, np.zeros_like(u), GRAVITY * height])


def _jet(lat: Array) -> Array:
    """Zonal wind in m s-1 at latitudes in radians (the paper's equation 2)."""
    inside = (lat > _SOUTH) & (lat < _NORTH)
    product = np.where(inside, (lat - _SOUTH) * (lat - _NORTH), -1.0)
    peak = np.exp(-4 / (_NORTH - _SOUTH) ** 2)
    return np.where(inside, _SPEED / peak * np.exp(1 / product), 0.0)


def _balanced_height(lat: Array) -> Array:
    """Height in m of the surface in balance with the jet (the paper's equation 3).

    The integral over latitude runs from the south pole over the pieces between the jet's edges
    and the rows asked for, each by Gauss-Legendre quadrature. It is exact to rounding, so that
    the state does not depend on the resolution.
    """

    def slope(at: Array) -> Array:
        u = _jet(at)
        return u * (2 * EARTH_RADIUS * EARTH_OMEGA * np.sin(at) + np.tan(at) * u) / GRAVITY

    def fall(at: Array) -> Array:
        # From the jet's southern edge; there is no wind before it or behind the northern one.
        end = np.clip(at, _SOUTH, _NORTH)
        nodes, weights = leggauss(200)
        half = (end[:, None] - _SOUTH) / 2
        return np.asarray((slope(_SOUTH + half * (nodes + 1)) * weights * half).sum(axis=1))

    # The mean over the sphere weights each latitude by cos(lat) / 2; piecewise at the edges.
    mean = 0.0
    for south, north in ((_SOUTH, _NORTH), (_NORTH, np.pi / 2)):
        nodes, weights = leggauss(200)
        at = south + (north - south) / 2 * (nodes + 1)
        mean += float((fall(at) * np.cos(at) * weights).sum() * (north - south) / 4)
    return _DEPTH + mean - fall(lat)


def _bump(lat: Array, lon: Array) -> Array:
    """Perturbation of the height in m, longitudes from -pi to pi (the paper's equation 4)."""
    return np.asarray(
        120.0 * np.cos(lat) * np.exp(-((lon * 3) ** 2)) * np.exp(-(((np.pi / 4 - lat) * 15) ** 2))
    )
