"""A shallow-water forecast model on the sphere: dynamics of the atmosphere, no weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from math import sqrt
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from earth2studio.models.batch import batch_coords, batch_func
from earth2studio.utils import handshake_coords, handshake_dim

from distinf.coords import Coords, State
from distinf.models.sphere import EARTH_OMEGA, EARTH_RADIUS, GRAVITY, regular_grid

if TYPE_CHECKING:
    from torch_harmonics.examples import ShallowWaterSolver

Hook = Callable[[torch.Tensor, Coords], State]

# Third-order Adams-Bashforth is stable on the imaginary axis up to here (Durran 1991, Mon.
# Wea. Rev. 119, 702-720).
_AB3_LIMIT = 0.7236
# Gravity waves move with the wind. Half the speed of the fastest jets separates a time step that
# was stable for six days of the jet of Galewsky et al. at 86 degrees (150 s) from one that was not
# (169 s).
_WIND = 40.0  # m s-1


def _unchanged(x: torch.Tensor, coords: Coords) -> State:
    return x, coords


class ShallowWater(torch.nn.Module):
    """Nonlinear shallow-water equations on the rotating Earth, as a prognostic model.

    One homogeneous layer of fluid with a free surface and a mean depth of 10 km, about the depth
    of an atmosphere. It has winds and a surface, but no temperature, moisture or vertical
    structure. The pressure level in the variables' names is only a label, so that diagnostics
    made for that level accept them: ``z850`` is the geopotential of the layer's surface (about
    98 000 m2 s-2), not that of the 850 hPa surface.

    The right-hand side is `torch_harmonics.examples.ShallowWaterSolver` (vorticity-divergence
    form, spectral, eighth-order hyperdiffusion of vorticity and divergence), in float32. A step
    transforms the visible grid state to spectral space, integrates, and transforms back; nothing
    else is carried over. So a forecast continued from any stored state repeats the bytes of one
    that was not interrupted.

    Parameters
    ----------
    nlat, nlon : int, optional
        Rows from 90 to -90 degrees with both poles, and columns eastward from 0.
    lmax : int, optional
        Number of spherical harmonic degrees, 0 to lmax - 1. By default the most for which the
        grid integrates products of three harmonics exactly, (nlat + 2) // 3: 86 for 256 rows.
    dt : float, optional
        Time step of the integration in s.
    level : int, optional
        Pressure level in hPa that the variables are labelled with.
    mean_depth : float, optional
        Depth in m that the stability bound on `dt` is computed for; the mean depth of a forecast
        is that of its initial condition.
    step_hours : int, optional
        Lead time between two states of the forecast in hours.

    Raises
    ------
    ValueError
        If the grid cannot carry `lmax`, or `dt` is unstable or does not divide the step.

    Examples
    --------
    >>> ShallowWater(nlat=128, nlon=256, dt=300).input_coords()["variable"].tolist()
    ['u850', 'v850', 'z850']
    """

    weight_free = True

    def __init__(
        self,
        nlat: int = 256,
        nlon: int = 512,
        lmax: int | None = None,
        dt: float = 150.0,
        level: int = 850,
        mean_depth: float = 10e3,
        step_hours: int = 6,
    ) -> None:
        super().__init__()
        if nlat < 8 or nlon < 16:
            raise ValueError(f"the grid must have at least 8 x 16 points, not {nlat} x {nlon}")
        largest = min((nlat + 2) // 3, (nlon + 2) // 3)
        lmax = largest if lmax is None else lmax
        if not 2 <= lmax <= largest:
            raise ValueError(
                f"lmax={lmax} is not possible on {nlat} x {nlon} points: products of fields are "
                f"free of aliasing for lmax from 2 to {largest}"
            )
        if mean_depth <= 0 or step_hours < 1:
            raise ValueError(
                f"mean_depth ({mean_depth}) and step_hours ({step_hours}) must be positive"
            )
        largest_dt = stable_time_step(lmax, mean_depth)
        if not 0 < dt <= largest_dt:
            raise ValueError(
                f"dt={dt:g} s is unstable at lmax={lmax}: gravity waves of a layer of "
                f"{mean_depth:g} m need 0 < dt <= {largest_dt:.0f} s; lower dt or lmax"
            )
        self._nsteps = round(3600 * step_hours / dt)
        if abs(self._nsteps * dt - 3600 * step_hours) > 1e-6 * dt:
            raise ValueError(
                f"dt={dt:g} s does not divide a step of {step_hours} h; "
                f"{3600 * step_hours / np.ceil(3600 * step_hours / dt):g} s would"
            )
        self.nlat, self.nlon, self.lmax, self.dt = nlat, nlon, lmax, float(dt)
        self._step = np.timedelta64(step_hours, "h")
        self._variables = np.array([f"u{level}", f"v{level}", f"z{level}"])
        self._solvers: dict[torch.device, ShallowWaterSolver] = {}
        self.front_hook: Hook = _unchanged
        self.rear_hook: Hook = _unchanged

    def __str__(self) -> str:
        return "shallow_water"

    def input_coords(self) -> Coords:
        """Coordinates of the initial state: ``batch, lead_time, variable, lat, lon``."""
        lat, lon = regular_grid(self.nlat, self.nlon)
        return OrderedDict(
            batch=np.empty(0),
            lead_time=np.array([np.timedelta64(0, "h")]),
            variable=self._variables.copy(),
            lat=lat,
            lon=lon,
        )

    @batch_coords()  # type: ignore[untyped-decorator]
    def output_coords(self, input_coords: Coords) -> Coords:
        """Coordinates one step later than `input_coords`, which may have any batch dims.

        Raises `ValueError` or `KeyError` if variables or grid differ from `input_coords()`.
        """
        target = self.input_coords()
        for index, dim in enumerate(target):
            if dim == "batch":
                continue
            handshake_dim(input_coords, dim, index)
            if dim != "lead_time":
                handshake_coords(input_coords, target, dim)
        if len(input_coords["lead_time"]) != 1:
            raise ValueError(f"one lead_time is expected, not {len(input_coords['lead_time'])}")
        target["batch"] = input_coords["batch"]
        target["lead_time"] = input_coords["lead_time"] + self._step
        return target

    @torch.no_grad()
    def _forward(self, x: torch.Tensor, coords: Coords) -> State:
        coords = self.output_coords(coords)
        out = torch.empty_like(x, dtype=torch.float32, memory_format=torch.contiguous_format)
        # One at a time: a transform's bytes depend on how many fields it is given.
        for state, result in zip(x[:, 0], out[:, 0], strict=True):
            result.copy_(self._advance(state.float()))
        return out, coords

    def _advance(self, state: torch.Tensor) -> torch.Tensor:
        """Integrate one state (u, v in m s-1, geopotential in m2 s-2; nlat, nlon) over a step."""
        solver = self._solver(state.device)
        spec = torch.cat([solver.grid2spec(state[2:]), solver.vrtdivspec(state[:2])])
        spec = self._integrate(solver, spec)
        return torch.cat([solver.getuv(spec[1:]), solver.spec2grid(spec[:1])])

    def _integrate(self, solver: ShallowWaterSolver, spec: torch.Tensor) -> torch.Tensor:
        """Third-order Adams-Bashforth from a standing start.

        Two third-order Runge-Kutta steps (Shu and Osher 1988) come first. The solver's own start
        with an Euler step would amplify gravity waves once in every step of the forecast.
        """
        before: list[torch.Tensor] = []
        for _ in range(self._nsteps):
            now = solver.dudtspec(spec)
            if len(before) < 2:
                one = spec + self.dt * now
                two = 0.75 * spec + 0.25 * (one + self.dt * solver.dudtspec(one))
                spec = (spec + 2 * (two + self.dt * solver.dudtspec(two))) / 3
                before = [now, *before]
            else:
                spec = spec + self.dt / 12 * (23 * now - 16 * before[0] + 5 * before[1])
                before = [now, before[0]]
            spec[1:] *= solver.hyperdiff
        return spec

    @batch_func()  # type: ignore[untyped-decorator]
    def __call__(self, x: torch.Tensor, coords: Coords) -> State:
        """Forecast one step from a state (..., lead_time = 1, variable = 3, nlat, nlon).

        The result is float32, on the device of the input.
        """
        return self._forward(x, coords)

    @batch_func()  # type: ignore[untyped-decorator]
    def _rollout(self, x: torch.Tensor, coords: Coords) -> Iterator[State]:
        self.output_coords(coords)
        yield x, coords.copy()
        while True:
            x, coords = self.front_hook(x, coords)
            x, coords = self._forward(x, coords)
            x, coords = self.rear_hook(x, coords)
            yield x, coords.copy()

    def create_iterator(self, x: torch.Tensor, coords: Coords) -> Iterator[State]:
        """Yield the initial state as given, then the state after each step, without end."""
        yield from self._rollout(x, coords)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move it as every module, and import early what delays the first step."""
        import torch_harmonics.examples  # noqa: F401

        return super().to(*args, **kwargs)

    def _solver(self, device: torch.device) -> ShallowWaterSolver:
        if device not in self._solvers:
            # Imported here because that takes seconds and a check of the config does not need it.
            from torch_harmonics.examples import ShallowWaterSolver

            self._solvers[device] = ShallowWaterSolver(
                self.nlat,
                self.nlon,
                self.dt,
                lmax=self.lmax,
                mmax=self.lmax,
                radius=EARTH_RADIUS,
                omega=EARTH_OMEGA,
                gravity=GRAVITY,
            ).to(device, torch.float32)
        return self._solvers[device]


def stable_time_step(lmax: int, mean_depth: float = 10e3) -> float:
    """Longest stable time step of the shallow-water model.

    The fastest waves are gravity waves of the smallest scale that go with a wind of 40 m s-1;
    their frequency times the time step must stay below the limit of the third-order
    Adams-Bashforth scheme.

    For ``lmax`` spherical harmonic degrees and a depth in m; in s: 153 for 86 degrees and 10 km,
    102 for 128.
    """
    speed = sqrt(GRAVITY * mean_depth) + _WIND
    return _AB3_LIMIT / (speed * sqrt(lmax * (lmax - 1)) / EARTH_RADIUS)
