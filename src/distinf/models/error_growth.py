"""How fast small errors grow from a shallow-water state: an ensemble of short forecasts."""

from __future__ import annotations

from collections import OrderedDict
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from earth2studio.models.batch import batch_coords, batch_func
from earth2studio.utils import handshake_coords, handshake_dim

from distinf.compiler import import_early
from distinf.coords import Coords, State
from distinf.models.shallow_water import largest_lmax, stable_time_step, strongest_wind
from distinf.models.sphere import EARTH_RADIUS, regular_grid

if TYPE_CHECKING:
    from distinf.models.shallow_water_solver import ShallowWaterSolver

_LARGEST_LMAX = 43
_SHORTEST_WAVE = 20  # degree of perturbations
# Errors take this time to come into balance and to turn into those that grow.
_ADJUSTMENT = 12 * 3600.0  # s
_SMOOTHING = 1e6  # m
_DAY = 86400.0  # s


class ErrorGrowth(torch.nn.Module):
    r"""Growth rate of small errors of a shallow-water forecast, as a diagnostic model.

    From each state it makes perturbed ones, runs the model of `ShallowWater` at lower resolution
    from them and from the state itself, and looks at how far their winds come apart. With
    :math:`E(t)` the squared difference of the wind, averaged over the perturbed forecasts, the
    growth rate at a place is

    .. math:: \frac{1}{2 T} \ln \frac{\tilde E(t_0 + T)}{\overline{E(t_0)}}

    where :math:`\tilde E` is smoothed over 1000 km (a Gaussian's standard deviation),
    :math:`\overline E` is the mean over the sphere, :math:`t_0` is 12 hours and :math:`T` is
    `hours`. A rate of 1 per day means that errors there are e times as large after a day as errors
    were on average before.

    A perturbation is a wind without divergence, with random coefficients and the same kinetic
    energy in each spherical harmonic degree from 1 to 20 (or lmax - 1). It leaves the
    geopotential as it is: that adjusts in the first 12 hours. The random numbers are those of
    torch's generator for the CPU, which distinf seeds for each task.

    With three members the rate is uncertain by about 0.1 per day: in a steady flow in which nothing
    grows (Williamson et al. 1992, case 2) its mean is 0.0 and it lies between -0.4 and 0.4.

    Parameters
    ----------
    level : int, optional
        Pressure level in hPa in the variables' names, as in `ShallowWater`.
    members : int, optional
        Number of perturbed forecasts.
    amplitude : float, optional
        Root mean square of a perturbation over the sphere in m s-1. Small, so that the errors
        grow by the same rates whatever their size.
    hours : float, optional
        Time over which the growth is measured.
    lmax : int, optional
        Number of spherical harmonic degrees of the forecasts, 0 to lmax - 1. By default 43, or
        fewer where the grid of the states carries fewer.

    Raises
    ------
    ValueError
        If one of them is out of range.
    """

    def __init__(
        self,
        level: int = 850,
        members: int = 3,
        amplitude: float = 0.1,
        hours: float = 24,
        lmax: int | None = None,
    ) -> None:
        super().__init__()
        if members < 1:
            raise ValueError(f"members={members}: must be at least 1")
        for name, value in (("amplitude", amplitude), ("hours", hours)):
            if not (isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: must be positive")
        if lmax is not None and lmax < 2:
            raise ValueError(f"lmax={lmax}: must be at least 2")
        self._level, self._members, self._amplitude = level, members, amplitude
        self._duration, self._lmax = 3600.0 * hours, lmax
        self._ensembles: dict[tuple[object, ...], _Ensemble] = {}

    def __str__(self) -> str:
        return "error_growth"

    def variable_attributes(self) -> dict[str, dict[str, str]]:
        """``units`` and ``long_name`` of the result."""
        text = f"growth rate of small errors of the wind at {self._level} hPa"
        return {f"error_growth{self._level}": {"units": "day-1", "long_name": text}}

    def input_coords(self) -> Coords:
        """Coordinates of its input: ``batch, variable, lat, lon``; any number of points."""
        return OrderedDict(
            batch=np.empty(0),
            variable=np.array([f"{name}{self._level}" for name in "uvz"]),
            lat=np.empty(0),
            lon=np.empty(0),
        )

    @batch_coords()  # type: ignore[untyped-decorator]
    def output_coords(self, input_coords: Coords) -> Coords:
        """Coordinates of the result: those of the state, with its variable.

        Raises `ValueError` or `KeyError` if the variables differ from `input_coords()`, or the
        grid is not one of `ShallowWater`, or too coarse for `lmax`.
        """
        target = self.input_coords()
        for index, dim in enumerate(target):
            if dim != "batch":
                handshake_dim(input_coords, dim, index)
        handshake_coords(input_coords, target, "variable")
        if len(input_coords["lat"]):  # none: the batching of Earth2Studio asks for the dims
            self._check_grid(input_coords["lat"], input_coords["lon"])
        output = input_coords.copy()
        output["variable"] = np.array(list(self.variable_attributes()))
        return output

    @batch_func()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def __call__(self, x: torch.Tensor, coords: Coords) -> State:
        """Compute the growth rate.

        Parameters
        ----------
        x : torch.Tensor
            u and v in m s-1 and the layer's geopotential in m2 s-2, of shape (..., variable = 3,
            lat, lon).
        coords : Coords
            Its coordinates.

        Returns
        -------
        x : torch.Tensor
            The growth rate per day, float32 of shape (..., variable = 1, lat, lon), on the device
            of the input; NaN if the state is not finite.
        coords : Coords
            Its coordinates.

        Raises
        ------
        ValueError
            If the geopotential is not positive, or the wind needs time steps below 1 s.
        """
        output = self.output_coords(coords)
        ensemble = self._ensemble(x.shape[-2], x.shape[-1], x.device)
        return torch.stack([self._rate(state, ensemble) for state in x.float()])[:, None], output

    def _rate(self, state: torch.Tensor, ensemble: _Ensemble) -> torch.Tensor:
        if not torch.isfinite(state).all():
            return torch.full_like(state[0], torch.nan)
        wind = strongest_wind(state, ensemble.lmax, f"z{self._level}")
        longest = stable_time_step(ensemble.lmax, wind)
        states = ensemble.perturbed(state, self._members, self._amplitude)
        states = ensemble.solver(states, _ADJUSTMENT, ceil(_ADJUSTMENT / longest))
        before = ensemble.mean(_error_energy(states))
        states = ensemble.solver(states, self._duration, ceil(self._duration / longest))
        after = ensemble.smoothed(_error_energy(states))
        # Smoothing by harmonics could miss a value near zero by a rounding error.
        growth = (after / before).clamp(min=torch.finfo(torch.float32).tiny)
        return torch.log(growth) / (2 * self._duration / _DAY)

    def _ensemble(self, nlat: int, nlon: int, device: torch.device) -> _Ensemble:
        key = (nlat, nlon, device)
        if key not in self._ensembles:
            self._ensembles[key] = _Ensemble(nlat, nlon, self._degrees(nlat, nlon)).to(device)
        return self._ensembles[key]

    def _check_grid(self, lat: np.ndarray, lon: np.ndarray) -> None:
        own = regular_grid(max(len(lat), 2), len(lon))
        for ours, given in zip(own, (lat, lon), strict=True):
            if ours.shape != given.shape or not np.allclose(ours, given):
                raise ValueError(
                    "error_growth needs the grid of shallow_water: rows from 90 to -90 degrees "
                    "with both poles, columns eastward from 0"
                )
        if self._degrees(len(lat), len(lon)) > (largest := largest_lmax(len(lat), len(lon))):
            raise ValueError(
                f"lmax={self._lmax} of error_growth is not possible on {len(lat)} x {len(lon)} "
                f"points: at most {largest}"
            )

    def _degrees(self, nlat: int, nlon: int) -> int:
        return self._lmax or min(_LARGEST_LMAX, largest_lmax(nlat, nlon))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the module, and import what would delay the first call."""
        import_early("torch_harmonics")
        return super().to(*args, **kwargs)


def _error_energy(states: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the winds (member, 3, lat, lon) from those of the first."""
    return (states[1:, :2] - states[0, :2]).square().sum(dim=1).mean(dim=0)


class _Ensemble(torch.nn.Module):
    """Perturbed states on a grid, their forecasts, and means over the sphere."""

    _weight: torch.Tensor
    _filter: torch.Tensor

    def __init__(self, nlat: int, nlon: int, lmax: int) -> None:
        # Imported here because that takes seconds and a check of the config does not need it.
        from torch_harmonics import InverseRealSHT, InverseRealVectorSHT, RealSHT
        from torch_harmonics.quadrature import clenshaw_curtiss_weights

        from distinf.models.shallow_water_solver import ShallowWaterSolver

        super().__init__()
        self.lmax = lmax
        self.solver: ShallowWaterSolver = ShallowWaterSolver(nlat, nlon, lmax)
        options = {"lmax": lmax, "mmax": lmax, "csphase": False}
        self._to_wind = InverseRealVectorSHT(nlat, nlon, **options).float()
        self._to_spectrum = RealSHT(nlat, nlon, **options).float()
        self._to_field = InverseRealSHT(nlat, nlon, **options).float()
        weight = torch.as_tensor(clenshaw_curtiss_weights(nlat, -1, 1)[1])
        self.register_buffer("_weight", (weight / weight.sum()).float(), persistent=False)
        degree = torch.arange(lmax)[:, None]
        smooth = torch.exp(-degree * (degree + 1) * (_SMOOTHING / EARTH_RADIUS) ** 2 / 2)
        self.register_buffer("_filter", smooth, persistent=False)
        order = torch.arange(lmax)
        inside = (degree >= 1) & (degree <= _SHORTEST_WAVE) & (order <= degree)
        # The same energy in each degree, whatever the number of its orders.
        energy = (2.0 * degree + 1) * degree * (degree + 1)
        self._shares = torch.where(inside, 1 / torch.sqrt(energy), 0)

    def perturbed(self, state: torch.Tensor, members: int, amplitude: float) -> torch.Tensor:
        """Return the state (3, nlat, nlon) and perturbed ones: (1 + members, 3, nlat, nlon)."""
        # On the CPU, so that the numbers do not depend on the device.
        noise = torch.randn(members, *self._shares.shape, 2)
        noise[:, :, 0, 0] *= 2**0.5  # this order has no imaginary part
        spectrum = torch.view_as_complex(noise) * self._shares
        # Toroidal coefficients alone: a wind without divergence.
        spectrum = torch.stack([spectrum, torch.zeros_like(spectrum)], dim=1).to(state.device)
        wind = self._to_wind(spectrum)
        size = self.mean(wind.square().sum(dim=1)).sqrt()
        states = state.repeat(1 + members, 1, 1, 1)
        states[1:, :2] += wind * (amplitude / size)[:, None, None, None]
        return states

    def mean(self, field: torch.Tensor) -> torch.Tensor:
        """Mean over the sphere of fields (..., nlat, nlon)."""
        return field.mean(dim=-1) @ self._weight

    def smoothed(self, field: torch.Tensor) -> torch.Tensor:
        """Average a field (nlat, nlon) with a Gaussian weight."""
        result: torch.Tensor = self._to_field(self._filter * self._to_spectrum(field))
        return result
