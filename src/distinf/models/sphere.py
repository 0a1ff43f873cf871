"""Global latitude-longitude grids: their kinds, and the map of each to a quadrature grid.

Constants are those of Williamson et al. (1992), J. Comput. Phys. 102, 211-224.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from distinf.models.fields import global_grid

EARTH_RADIUS = 6.37122e6  # m
EARTH_OMEGA = 7.292e-5  # s-1
GRAVITY = 9.80616  # m s-2

Array = npt.NDArray[np.float64]

# Largest error of a position, as a share of the spacing. Coordinates in float32 or with three
# decimals pass; Gaussian rows, whose spacing varies by 0.8 %, never count as equally spaced.
_TOLERANCE = 5e-3


def regular_grid(nlat: int, nlon: int) -> tuple[Array, Array]:
    """Latitudes from 90 to -90 with both poles, and longitudes from 0 eastward, in degrees."""
    lat, lon = global_grid(nlat, nlon, both_poles=True).values()
    return lat, lon


@dataclass(frozen=True)
class SphereGrid:
    """The rows and columns of a global grid, and the map to rows that can be integrated exactly.

    Spherical harmonic transforms need rows with known quadrature weights: equally spaced ones
    with both poles (Clenshaw-Curtis), or Gauss-Legendre ones. Other equally spaced rows are
    interpolated along the meridian, which continues beyond the pole at longitude + 180.

    Attributes
    ----------
    nlat, nlon : int
        Rows and columns of the grid itself.
    rows : {"poles", "midpoints", "gauss"}
        Equally spaced with a row at (or one spacing from) each pole, equally spaced half a
        spacing from the poles, or Gauss-Legendre.
    no_north, no_south : bool
        A "poles" grid lacks the row at that pole.
    south_first : bool
        Latitudes increase.
    """

    nlat: int
    nlon: int
    rows: Literal["poles", "midpoints", "gauss"]
    no_north: bool = False
    no_south: bool = False
    south_first: bool = False

    @classmethod
    def from_coords(cls, lat: npt.ArrayLike, lon: npt.ArrayLike) -> SphereGrid:
        """Recognise a grid by latitudes in either order and longitudes eastward, in degrees.

        Raises `ValueError` if it is not global, or its rows or columns are of no known kind.
        """
        lat = np.asarray(lat, dtype=np.float64)
        _check_longitudes(np.asarray(lon, dtype=np.float64))
        nlon = int(np.asarray(lon).size)
        if lat.ndim != 1 or lat.size < 4 or not np.isfinite(lat).all():
            raise ValueError(
                f"lat must be one-dimensional with at least 4 finite values, not shape {lat.shape}"
            )
        south_first = bool(lat[0] < lat[-1])
        down = lat[::-1] if south_first else lat
        nlat = lat.size
        spacing = (down[0] - down[-1]) / (nlat - 1)
        even = np.linspace(down[0], down[-1], nlat)
        if np.abs(down - even).max() <= _TOLERANCE * spacing:
            gaps = [_pole_gap((90 - down[0]) / spacing), _pole_gap((90 + down[-1]) / spacing)]
            if gaps == [0.5, 0.5]:
                return cls(nlat, nlon, "midpoints", south_first=south_first)
            if all(gap in (0.0, 1.0) for gap in gaps):
                return cls(nlat, nlon, "poles", gaps[0] == 1, gaps[1] == 1, south_first)
            raise ValueError(
                f"latitudes from {lat[0]:g} to {lat[-1]:g} every {spacing:g} degrees do not cover "
                "the globe: the outermost rows must lie at the poles, or one spacing from them, "
                "or half a spacing from both"
            )
        from torch_harmonics.quadrature import legendre_gauss_weights

        gauss = np.degrees(np.arcsin(np.asarray(legendre_gauss_weights(nlat, -1, 1)[0])))[::-1]
        if np.abs(down - gauss).max() <= _TOLERANCE * spacing:
            return cls(nlat, nlon, "gauss", south_first=south_first)
        raise ValueError(
            f"the {nlat} latitudes from {lat[0]:g} to {lat[-1]:g} are neither equally spaced nor "
            f"the {nlat} Gauss-Legendre latitudes (which start at {gauss[0]:g})"
        )

    @property
    def quadrature(self) -> str:
        """The grid's name in torch-harmonics after `to_quadrature`."""
        return "legendre-gauss" if self.rows == "gauss" else "equiangular"

    @property
    def quadrature_nlat(self) -> int:
        """Number of rows after `to_quadrature`."""
        if self.rows == "midpoints":
            return self.nlat + 1
        return self.nlat + self.no_north + self.no_south

    @property
    def largest_lmax(self) -> int:
        """Most degrees (0 to lmax - 1) whose squares the quadrature still integrates exactly."""
        rows = self.quadrature_nlat
        return min(rows if self.rows == "gauss" else (rows + 1) // 2, self.nlon // 2)

    def to_quadrature(self, vector: torch.Tensor) -> torch.Tensor:
        """Map wind components (..., nlat, nlon) to north-first quadrature rows.

        Returns shape (..., quadrature_nlat, nlon), same dtype and device.
        """
        if self.south_first:
            vector = vector.flip(-2)
        if self.rows == "midpoints":
            # Beyond a pole east and north point the other way, hence the sign.
            circle = torch.cat([vector, -_opposite(vector).flip(-2)], dim=-2)
            return _shift_rows(circle, -0.5)[..., : self.nlat + 1, :]
        if self.no_north:
            vector = torch.cat([_pole_row(vector), vector], dim=-2)
        if self.no_south:
            vector = torch.cat([vector, _pole_row(vector.flip(-2))], dim=-2)
        return vector

    def from_quadrature(self, scalar: torch.Tensor) -> torch.Tensor:
        """Map scalars (..., quadrature_nlat, nlon) back to the grid's rows (..., nlat, nlon)."""
        if self.rows == "midpoints":
            circle = torch.cat([scalar, _opposite(scalar[..., 1:-1, :]).flip(-2)], dim=-2)
            scalar = _shift_rows(circle, 0.5)[..., : self.nlat, :]
        else:
            scalar = scalar[..., int(self.no_north) : scalar.shape[-2] - int(self.no_south), :]
        return scalar.flip(-2) if self.south_first else scalar


def _pole_gap(spacings: float) -> float | None:
    """Name the distance of the outermost row from its pole, in units of the rows' spacing."""
    return next((gap for gap in (0.0, 0.5, 1.0) if abs(spacings - gap) <= 0.02), None)


def _check_longitudes(lon: Array) -> None:
    if lon.ndim != 1 or lon.size < 4 or not np.isfinite(lon).all():
        raise ValueError(
            f"lon must be one-dimensional with at least 4 finite values, not shape {lon.shape}"
        )
    spacing = 360 / lon.size
    # A start that is not 0 may wrap from 360 to 0, or from 180 to -180, once on the way.
    steps = np.mod(np.diff(lon), 360)
    if np.abs(steps - spacing).max() > max(_TOLERANCE * spacing, 1e-4):
        raise ValueError(
            f"{lon.size} longitudes from {lon[0]:g} to {lon[-1]:g} are not a full circle: they "
            f"must go eastward in equal steps of {spacing:g} degrees, without repeating the first"
        )


def _opposite(field: torch.Tensor) -> torch.Tensor:
    """Give the field at longitude + 180 degrees."""
    nlon = field.shape[-1]
    if nlon % 2 == 0:
        return field.roll(nlon // 2, dims=-1)
    waves = torch.fft.rfft(field, dim=-1)
    sign = 1.0 - 2.0 * (torch.arange(waves.shape[-1], device=field.device) % 2)
    opposite: torch.Tensor = torch.fft.irfft(waves * sign.to(field.dtype), n=nlon, dim=-1)
    return opposite


def _shift_rows(circle: torch.Tensor, rows: float) -> torch.Tensor:
    """Evaluate a periodic meridian `rows` spacings further on: exact for band-limited fields."""
    count = circle.shape[-2]
    waves = torch.fft.rfft(circle, dim=-2)
    angle = torch.arange(waves.shape[-2], device=circle.device, dtype=torch.float64)
    phase = torch.polar(torch.ones_like(angle), angle * (2 * torch.pi * rows / count))
    shifted: torch.Tensor = torch.fft.irfft(waves * phase.to(waves.dtype)[:, None], n=count, dim=-2)
    return shifted


def _pole_row(vector: torch.Tensor) -> torch.Tensor:
    """Interpolate wind components to the pole just before the first row.

    Lagrange's formula on the 2p rows around the pole, p = 6 of them on its far side.
    """
    points = min(6, vector.shape[-2])
    near = vector[..., :points, :]
    pairs = near - _opposite(near)
    weights = [
        (-1) ** (k + 1) * factorial(points) ** 2 / factorial(points - k) / factorial(points + k)
        for k in range(1, points + 1)
    ]
    weight = torch.tensor(weights, dtype=vector.dtype, device=vector.device)
    return (pairs * weight[:, None]).sum(dim=-2, keepdim=True)
