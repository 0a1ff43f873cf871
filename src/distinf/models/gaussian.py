"""Spectral transforms between triangular spectra and a Gaussian grid, made for many steps.

The formulas are those of Hack and Jakob (1992), Description of a global shallow water model based
on the spectral transform method, NCAR Technical Note NCAR/TN-343+STR.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.polynomial.legendre import leggauss

from distinf.models.sphere import EARTH_RADIUS, Array
from distinf.models.split import Split


class GaussianTransform(torch.nn.Module):
    """Transforms of scalars, winds and fluxes, free of aliasing in products of two fields.

    A spectrum is complex64 of shape (..., order m, j) with j = degree - m. Orders are 0 to
    lmax - 1; j has room for one degree more than a state has, which the winds need. A field on
    the grid is float32 of shape (..., 2, row, nlon): rows from the pole to the equator, of the
    northern and of the southern hemisphere. Harmonics are even or odd in latitude, so the tables
    hold one hemisphere.

    On the ranks of a group, each has its own orders of a spectrum and its own rows of a field: a
    transform is local along the meridian and, after an exchange, along the rows.

    Parameters
    ----------
    lmax : int
        Number of spherical harmonic degrees of a state, 0 to lmax - 1.
    split : Split, optional
        How orders and rows are split over the ranks of a group, each of which must then call the
        transforms.

    Attributes
    ----------
    nlat, nlon : int
        Size of the whole grid, at least (3 lmax - 2) / 2 rows and 3 lmax - 2 columns.
    degree : torch.Tensor
        Degree of each coefficient, of shape (order, j).
    inside : torch.Tensor
        1 where a coefficient belongs to a state, else 0; of shape (order, j).
    sine, per_cosine2 : torch.Tensor
        Sine of latitude and the inverse square of its cosine, of shape (2, row, 1).
    """

    degree: torch.Tensor
    inside: torch.Tensor
    sine: torch.Tensor
    per_cosine2: torch.Tensor
    _synthesis: torch.Tensor
    _analysis: torch.Tensor
    _wind_east: torch.Tensor
    _wind_below: torch.Tensor
    _wind_above: torch.Tensor
    _flux_east: torch.Tensor
    _flux_below: torch.Tensor
    _flux_above: torch.Tensor

    def __init__(self, lmax: int, split: Split | None = None) -> None:
        super().__init__()
        self._split = split
        rows = -(-(3 * lmax - 2) // 4)
        self.lmax, self.nlat, self.nlon = lmax, 2 * rows, _fast_length(3 * lmax - 2)
        count = lmax + 2 - lmax % 2  # even, and at least lmax + 1
        own = slice(None) if split is None else split.part(lmax)
        order = np.arange(lmax)[own, None]
        degree = order + np.arange(count)
        nodes, weights = leggauss(2 * rows)
        sine, weight = nodes[: rows - 1 : -1], weights[: rows - 1 : -1]
        table = _legendre(order[:, 0], count, sine)
        # Functions that are even in latitude, then those that are odd.
        halves = np.concatenate([table[..., 0::2], table[..., 1::2]])
        self._keep("_synthesis", halves.swapaxes(-1, -2))
        self._keep("_analysis", halves * (2 * np.pi * weight[:, None]))
        self._keep("inside", degree < lmax)
        self.register_buffer("degree", torch.from_numpy(degree), persistent=False)
        own = slice(None) if split is None else split.part(rows)
        sine = sine[own]
        self._keep("sine", np.stack([sine, -sine])[..., None])
        self._keep("per_cosine2", np.stack([1 / (1 - sine**2)] * 2)[..., None])
        # Factors of the degrees below and above in the derivative along the meridian.
        below = np.sqrt((degree**2 - order**2) / (4.0 * degree**2 - 1))
        above = np.sqrt(((degree + 1) ** 2 - order**2) / (4.0 * (degree + 1) ** 2 - 1))
        divisor = np.maximum(degree, 1)
        self._keep("_wind_east", -1j * EARTH_RADIUS * order / (divisor * (degree + 1)))
        self._keep("_wind_below", (EARTH_RADIUS * below / divisor)[:, 1:])
        self._keep("_wind_above", (EARTH_RADIUS * above / (degree + 1))[:, :-1])
        self._keep("_flux_east", 1j * order / EARTH_RADIUS * np.ones(count))
        self._keep("_flux_below", ((degree + 1) * below / EARTH_RADIUS)[:, 1:])
        self._keep("_flux_above", (degree * above / EARTH_RADIUS)[:, :-1])

    def _keep(self, name: str, values: np.ndarray[Any, Any]) -> None:
        kind = np.complex64 if np.iscomplexobj(values) else np.float32
        values = np.ascontiguousarray(values, dtype=kind)
        self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def to_grid(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Evaluate spectra (..., order, j) on the grid."""
        orders, count = self.degree.shape
        fields = spectrum.numel() // (orders * count)
        # Long rows of coefficients times a table: the other way round takes four times as long.
        parts = torch.view_as_real(spectrum).view(fields, orders, count // 2, 2, 2)
        parts = parts.permute(3, 1, 0, 4, 2).reshape(2 * orders, 2 * fields, count // 2)
        even, odd = torch.bmm(parts, self._synthesis).view(2, orders, fields, 2, -1)
        halves = torch.stack([even + odd, even - odd]).permute(2, 0, 4, 1, 3)
        waves = torch.view_as_complex(halves.contiguous())
        if self._split is not None:
            waves = self._split.transpose(waves, -2, -1, self.lmax)
        field: torch.Tensor = torch.fft.irfft(waves, n=self.nlon, norm="forward")
        return field.view(*spectrum.shape[:-2], *field.shape[-3:])

    def to_spectrum(self, field: torch.Tensor) -> torch.Tensor:
        """Integrate fields on the grid against the harmonics: spectra (..., order, j)."""
        orders, count = self.degree.shape
        before, flat = field.shape[:-3], field.flatten(0, -4)
        fields = len(flat)
        waves = torch.fft.rfft(flat, norm="forward")[..., : self.lmax]
        if self._split is not None:
            waves = self._split.transpose(waves, -1, -2, self.nlat // 2)
        north, south = torch.view_as_real(waves).permute(1, 3, 0, 4, 2)
        parts = torch.stack([north + south, north - south])
        parts = torch.bmm(parts.view(2 * orders, 2 * fields, -1), self._analysis)
        parts = parts.view(2, orders, fields, 2, count // 2).permute(2, 1, 4, 0, 3)
        return torch.view_as_complex(parts.reshape(*before, orders, count, 2))

    def wind(self, rotation: torch.Tensor) -> torch.Tensor:
        """Spectra of u and v (m s-1) times the cosine of latitude.

        Of vorticity and divergence in s-1, of shape (..., 2, order, j).
        """
        wind = self._wind_east * rotation.flip(-3)
        vorticity, divergence = rotation.unbind(dim=-3)
        turned = torch.stack([vorticity, -divergence], dim=-3)
        wind[..., :-1] += self._wind_above * turned[..., 1:]
        wind[..., 1:] -= self._wind_below * turned[..., :-1]
        return wind

    def divergence(self, east: torch.Tensor, north: torch.Tensor) -> torch.Tensor:
        """Divergence of a vector field.

        Of the spectra (..., order, j) of its eastward and northward component, both divided by the
        cosine of latitude.
        """
        result = self._flux_east * east
        result[..., 1:] -= self._flux_below * north[..., :-1]
        result[..., :-1] += self._flux_above * north[..., 1:]
        return result * self.inside

    def curl(self, east: torch.Tensor, north: torch.Tensor) -> torch.Tensor:
        """Vertical component of the curl of a vector field, given in the same way."""
        return self.divergence(north, -east)


def _legendre(order: npt.NDArray[np.int64], count: int, sine: Array) -> Array:
    """Associated Legendre functions, orthonormal over the sphere: (order, row, j).

    Three-term recurrence in the degree for each of some orders, in float64.
    """
    below = np.arange(1, order[-1] + 1)
    cosine = np.sqrt(1 - sine**2)
    steps = np.sqrt((2 * below + 1) / (2.0 * below))
    first = np.cumprod(np.concatenate([[np.sqrt(0.25 / np.pi)], steps]))[order]
    table = np.zeros((order.size, sine.size, count))
    table[..., 0] = first[:, None] * cosine ** order[:, None]
    before = np.zeros((order.size, 1))
    for j in range(1, count):
        degree = order + j
        factor = np.sqrt((degree**2 - order**2) / (4.0 * degree**2 - 1))[:, None]
        table[..., j] = sine * table[..., j - 1]
        if j > 1:
            table[..., j] -= before * table[..., j - 2]
        table[..., j] /= factor
        before = factor
    return table


def _fast_length(least: int) -> int:
    """Shortest even length from `least` on that a fast Fourier transform divides by 2, 3, 5."""
    length = least + least % 2
    while _rest(length) > 1:
        length += 2
    return length


def _rest(length: int) -> int:
    for factor in (2, 3, 5):
        while length % factor == 0:
            length //= factor
    return length
