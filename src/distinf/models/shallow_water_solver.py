"""The shallow-water equations on the sphere in spectral space, and their integration in time.

The formulas are those of Hack and Jakob (1992), NCAR Technical Note NCAR/TN-343+STR, chapters 2
and 3, with the geopotential as a deviation from a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from distinf.models.gaussian import GaussianTransform
from distinf.models.sphere import EARTH_OMEGA, EARTH_RADIUS
from distinf.models.split import Split
from distinf.models.transforms import make_transform

# Hyperdiffusion damps the highest degree by a factor e in this time, as the solver of
# torch-harmonics does.
_DAMPING_TIME = 7200.0  # s


class ShallowWaterSolver(torch.nn.Module):
    """Vorticity, divergence and geopotential of one layer, integrated over a stated time.

    Gravity waves of a layer at rest, and the eighth-order hyperdiffusion of vorticity and
    divergence, are linear and integrated exactly; the rest is integrated by a fourth-order
    exponential Runge-Kutta scheme, ETDRK4-B of Krogstad (2005), J. Comput. Phys. 203, 72-88.

    Parameters
    ----------
    nlat, nlon : int
        Grid of the states: rows from 90 to -90 degrees with both poles.
    lmax : int
        Number of spherical harmonic degrees.
    split : Split, optional
        How to split the transforms and the spectra over the ranks of a group. All of them must
        then call the solver with the same arguments, and get the same result.
    """

    _to_rotation: torch.Tensor
    _from_rotation: torch.Tensor
    _squares: torch.Tensor
    _coriolis: torch.Tensor
    _row_weight: torch.Tensor

    def __init__(self, nlat: int, nlon: int, lmax: int, split: Split | None = None) -> None:
        super().__init__()
        grid = (nlat, nlon, lmax)
        self._scalar = make_transform("RealSHT", *grid, split=split)
        self._vector = make_transform("RealVectorSHT", *grid, split=split)
        self._to_scalar = make_transform("InverseRealSHT", *grid, split=split)
        self._to_vector = make_transform("InverseRealVectorSHT", *grid, split=split)
        self._gauss = GaussianTransform(lmax, split)
        self._lmax = lmax
        degree = torch.arange(lmax, dtype=torch.float64)[:, None]
        slope = degree * (degree + 1) / EARTH_RADIUS
        self.register_buffer("_to_rotation", -slope.float(), persistent=False)
        self.register_buffer(
            "_from_rotation", torch.where(slope > 0, -1 / slope, 0).float(), persistent=False
        )
        squares = _square_wavenumber(self._gauss.degree) * self._gauss.inside
        self.register_buffer("_squares", squares.float(), persistent=False)
        self.register_buffer("_coriolis", 2 * EARTH_OMEGA * self._gauss.sine, persistent=False)
        rows = torch.cos(torch.linspace(-torch.pi / 2, torch.pi / 2, nlat, dtype=torch.float64))
        self.register_buffer("_row_weight", rows / rows.sum(), persistent=False)
        self._last_scheme: tuple[tuple[float, float], _Scheme] | None = None

    def forward(self, state: torch.Tensor, duration: float, steps: int) -> torch.Tensor:
        """Integrate a state, or several with the same mean geopotential.

        Parameters
        ----------
        state : torch.Tensor
            u, v in m s-1 and geopotential in m2 s-2, float32 of shape (..., 3, nlat, nlon).
        duration : float
            Time in s.
        steps : int
            Number of time steps in it.

        Returns
        -------
        torch.Tensor
            The states at the end, of the same shape.
        """
        wind, geopotential = state[..., :2, :, :], state[..., 2:, :, :]
        rows = geopotential.flatten(0, -3)[0].double().mean(dim=-1)
        # Three digits: rounding in the mean must not reach the result.
        mean = float(f"{float(rows @ self._row_weight):.3g}")
        rotation = self._to_rotation * self._vector(wind)
        spectrum = self._pack(torch.cat([rotation, self._scalar(geopotential - mean)], dim=-3))
        scheme = self._scheme(duration / steps, mean)
        for _ in range(steps):
            spectrum = self._step(spectrum, scheme)
        result = self._unpack(spectrum)
        wind = self._to_vector(self._from_rotation * result[..., :2, :, :])
        return torch.cat([wind, self._to_scalar(result[..., 2:, :, :]) + mean], dim=-3)

    def _scheme(self, step: float, mean: float) -> _Scheme:
        if self._last_scheme is None or self._last_scheme[0] != (step, mean):
            scheme = _Scheme.make(step, mean, self._lmax, self._gauss.degree)
            self._last_scheme = ((step, mean), scheme)
        return self._last_scheme[1]

    def _step(self, now: torch.Tensor, scheme: _Scheme) -> torch.Tensor:
        first = self._tendency(now)
        half = scheme.half(now)
        second = self._tendency(now + (half + scheme.second(first)))
        third = scheme.third(first) + scheme.third_second(second)
        third = self._tendency(now + (half + third))
        full = scheme.full(now)
        fourth = scheme.fourth(first) + scheme.fourth_third(third)
        fourth = self._tendency(now + (full + fourth))
        change = full + scheme.first(first) + scheme.middle(second + third) + scheme.last(fourth)
        return now + change

    def _tendency(self, spectrum: torch.Tensor) -> torch.Tensor:
        """All but the linear terms, per s."""
        gauss = self._gauss
        spectra = [spectrum[..., ::2, :, :], gauss.wind(spectrum[..., :2, :, :])]
        fields = gauss.to_grid(torch.cat(spectra, dim=-3))
        vorticity, geopotential, wind = torch.split(fields, [1, 1, 2], dim=-4)
        scaled = wind * gauss.per_cosine2
        energy = (wind * scaled).sum(dim=-4, keepdim=True) / 2
        products = [scaled * (vorticity + self._coriolis), scaled * geopotential, energy]
        rotation_east, rotation_north, mass_east, mass_north, energy = gauss.to_spectrum(
            torch.cat(products, dim=-4)
        ).unbind(dim=-3)
        return torch.stack(
            [
                -gauss.divergence(rotation_east, rotation_north),
                gauss.curl(rotation_east, rotation_north) + self._squares * energy,
                -gauss.divergence(mass_east, mass_north),
            ],
            dim=-3,
        )

    def _pack(self, spectrum: torch.Tensor) -> torch.Tensor:
        """From (..., degree, order) to (..., order, degree - order)."""
        degree = self._gauss.degree
        index = torch.arange(len(degree), device=degree.device)[:, None]
        packed: torch.Tensor = spectrum[..., degree.clamp(max=self._lmax - 1), index]
        return packed * self._gauss.inside

    def _unpack(self, spectrum: torch.Tensor) -> torch.Tensor:
        order = self._gauss.degree[:, 0]
        above = torch.arange(self._lmax, device=order.device)[:, None] - order
        index = torch.arange(len(order), device=order.device)
        return torch.where(above >= 0, spectrum[..., index, above.clamp(min=0)], 0)


class _Operator(NamedTuple):
    """A function of the linear terms: acts on each coefficient, couples the last two fields."""

    same: torch.Tensor  # (3, order, j, 1)
    other: torch.Tensor  # (2, order, j, 1)

    def __call__(self, spectrum: torch.Tensor) -> torch.Tensor:
        parts = torch.view_as_real(spectrum)
        result = self.same * parts
        result[..., 1:, :, :, :] += self.other * parts[..., 1:, :, :, :].flip(-4)
        return torch.view_as_complex(result)


@dataclass(frozen=True)
class _Scheme:
    """The operators of one time step, by the stage's tendency that they multiply."""

    half: _Operator
    full: _Operator
    second: _Operator
    third: _Operator
    third_second: _Operator
    fourth: _Operator
    fourth_third: _Operator
    first: _Operator
    middle: _Operator
    last: _Operator

    @classmethod
    def make(cls, step: float, mean: float, lmax: int, degree: torch.Tensor) -> _Scheme:
        """Compute them for a step in s and a mean geopotential in m2 s-2, in float64."""
        linear, unit = _linear_terms(lmax, mean)
        linear *= step
        full, one, two, three = _phi_functions(linear)
        half, half_one, half_two, _ = _phi_functions(linear / 2)
        matrices = {
            # Only what they change: in a steady state the changes of a step add up to nothing,
            # which float32 would lose beside the state.
            "half": half - torch.eye(3),
            "full": full - torch.eye(3),
            "second": step / 2 * half_one,
            "third": step * (half_one / 2 - half_two),
            "third_second": step * half_two,
            "fourth": step * (one - 2 * two),
            "fourth_third": step * 2 * two,
            "first": step * (one - 3 * two + 4 * three),
            "middle": step * (2 * two - 4 * three),
            "last": step * (4 * three - two),
        }
        at = degree.cpu().clamp(max=lmax - 1)

        def operator(matrix: torch.Tensor) -> _Operator:
            same = torch.stack([matrix[at, i, i] for i in range(3)])
            other = torch.stack([matrix[at, 1, 2] / unit[at], matrix[at, 2, 1] * unit[at]])
            return _Operator(*(x[..., None].float().to(degree.device) for x in (same, other)))

        return cls(**{name: operator(matrix) for name, matrix in matrices.items()})


def _square_wavenumber(degree: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of the negative Laplacian in m-2, float64."""
    degree = degree.double()
    return degree * (degree + 1) / EARTH_RADIUS**2


def _linear_terms(lmax: int, mean: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix of vorticity, divergence and geopotential for each degree, per s: (lmax, 3, 3).

    The geopotential is in the unit returned beside it, in which the frequency of gravity waves
    stands on both sides of the diagonal: else the exponential loses eight digits.
    """
    squares = _square_wavenumber(torch.arange(lmax))
    frequency = torch.sqrt(squares * mean)
    unit = torch.where(squares > 0, frequency / squares, 1.0)
    damping = (squares / squares[-1]) ** 4 / _DAMPING_TIME
    linear = torch.zeros(lmax, 3, 3, dtype=torch.float64)
    linear[:, 0, 0] = linear[:, 1, 1] = -damping
    linear[:, 1, 2], linear[:, 2, 1] = frequency, -frequency
    return linear, unit


def _phi_functions(matrix: torch.Tensor) -> list[torch.Tensor]:
    """Exponential of matrices (..., 3, 3), and the functions phi_1 to phi_3 made from it.

    They are the first row of blocks of the exponential of a matrix with identities beside the
    diagonal (Sidje 1998, ACM Trans. Math. Softw. 24, 130-156, theorem 1).
    """
    large = torch.zeros(*matrix.shape[:-2], 12, 12, dtype=torch.float64)
    large[..., :3, :3] = matrix
    for start in (0, 3, 6):
        large[..., start : start + 3, start + 3 : start + 6] = torch.eye(3)
    row = torch.matrix_exp(large)[..., :3, :]
    return [row[..., start : start + 3] for start in (0, 3, 6, 9)]
