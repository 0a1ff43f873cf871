"""A shallow-water forecast model on the sphere: dynamics of the atmosphere, no weights."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from math import ceil, isfinite, sqrt
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from earth2studio.models.batch import batch_coords, batch_func
from earth2studio.utils import handshake_coords, handshake_dim

from distinf.compiler import import_early
from distinf.coords import Coords, State
from distinf.models.sphere import EARTH_OMEGA, EARTH_RADIUS, regular_grid
from distinf.models.split import split_over

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from distinf.models.shallow_water_solver import ShallowWaterSolver

log = logging.getLogger("distinf")

Hook = Callable[[torch.Tensor, Coords], State]

# Angle by which advection and rotation may turn the smallest waves in a time step. For gravity
# waves in a uniform wind, the eigenvalues of a step of the scheme stay within 1 to an angle of 2.
_LARGEST_ANGLE = 1.2
# For winds that grow before the time step is chosen anew.
_WIND_ROOM = 1.1
_DEFAULT_DT = 1800.0  # s
_SHORTEST_DT = 1.0  # s


def _unchanged(x: torch.Tensor, coords: Coords) -> State:
    return x, coords


class ShallowWater(torch.nn.Module):
    """Nonlinear shallow-water equations on the rotating Earth, as a prognostic model.

    One homogeneous layer of fluid with a free surface and a mean depth of 10 km, about the depth
    of an atmosphere. It has winds and a surface, but no temperature, moisture or vertical
    structure. The pressure level in the variables' names is only a label, so that diagnostics
    made for that level accept them: ``z850`` is the geopotential of the layer's surface (about
    98 000 m2 s-2), not that of the 850 hPa surface.

    A step transforms the visible grid state to spectral space (vorticity, divergence and
    geopotential, in float32), integrates there, and transforms back; nothing else is carried
    over. So a forecast continued from any stored state repeats the bytes of one that was not
    interrupted. Products are formed on a Gaussian grid that is just fine enough to be free of
    aliasing (128 x 256 points for 86 degrees). Gravity waves of a layer at rest and an
    eighth-order hyperdiffusion of vorticity and divergence are integrated exactly, all else by
    the fourth-order exponential Runge-Kutta scheme ETDRK4-B of Krogstad (2005), J. Comput. Phys.
    203, 72-88. So the time step depends on the wind, not on the gravity waves.

    The number of time steps in a step of the forecast is chosen anew for each, from the state at
    its beginning (`stable_time_step`).

    Parameters
    ----------
    nlat, nlon : int, optional
        Rows from 90 to -90 degrees with both poles, and columns eastward from 0.
    lmax : int, optional
        Number of spherical harmonic degrees, 0 to lmax - 1. By default the most for which the
        grid integrates products of three harmonics exactly, (nlat + 2) // 3: 86 for 256 rows.
    dt : float, optional
        Longest time step of the integration in s; the time steps are the longest that divide a
        step of the forecast evenly. By default 1800. Where a wind needs shorter ones, it is
        shortened; if it was given, one line in the log says so before the first step.
    level : int, optional
        Pressure level in hPa that the variables are labelled with.
    step_hours : int, optional
        Lead time between two states of the forecast in hours.
    group : torch.distributed.ProcessGroup, optional
        Ranks that share the work: each has a part of the Legendre tables and of the spectra. All of
        them must make the model and each of its calls with the same arguments, with whole fields;
        each gets the whole result. By default one rank does all.

    Raises
    ------
    ValueError
        If the grid cannot carry `lmax`, or `dt` or `step_hours` is not positive; if `lmax` is too
        small for so many ranks, or a model in this process is shared by another group.

    Examples
    --------
    >>> ShallowWater(nlat=128, nlon=256).input_coords()["variable"].tolist()
    ['u850', 'v850', 'z850']
    """

    def __init__(
        self,
        nlat: int = 256,
        nlon: int = 512,
        lmax: int | None = None,
        dt: float | None = None,
        level: int = 850,
        step_hours: int = 6,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if nlat < 8 or nlon < 16:
            raise ValueError(f"the grid must have at least 8 x 16 points, not {nlat} x {nlon}")
        largest = largest_lmax(nlat, nlon)
        lmax = largest if lmax is None else lmax
        if not 2 <= lmax <= largest:
            raise ValueError(
                f"lmax={lmax} is not possible on {nlat} x {nlon} points: products of fields are "
                f"free of aliasing for lmax from 2 to {largest}"
            )
        if step_hours < 1:
            raise ValueError(f"step_hours={step_hours}: must be at least 1")
        if dt is not None and not (isfinite(dt) and dt >= _SHORTEST_DT):
            raise ValueError(f"dt={dt:g}: must be a time step of at least {_SHORTEST_DT:g} s")
        self.nlat, self.nlon, self.lmax, self.dt = nlat, nlon, lmax, dt
        self._split = split_over(group)
        if self._split is not None:
            self._split.check(lmax)
        self._duration = 3600.0 * step_hours
        self._step = np.timedelta64(step_hours, "h")
        self._variables = np.array([f"u{level}", f"v{level}", f"z{level}"])
        self._solvers: dict[torch.device, ShallowWaterSolver] = {}
        self._told = dt is None or (self._split is not None and self._split.rank > 0)
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
        if not torch.isfinite(state).all():
            return torch.full_like(state, torch.nan)
        solver = self._solver(state.device)
        result: torch.Tensor = solver(state, self._duration, self._count_steps(state))
        return result

    def _count_steps(self, state: torch.Tensor) -> int:
        """Choose the number of time steps for a finite state (3, nlat, nlon)."""
        wind = strongest_wind(state, self.lmax, self._variables[2])
        stable = stable_time_step(self.lmax, wind)
        wanted = _DEFAULT_DT if self.dt is None else self.dt
        count = ceil(self._duration / min(stable, wanted))
        if not self._told and stable < wanted:
            self._told = True
            log.warning(
                "shallow_water: a wind of %.0f m/s at lmax=%d needs time steps of at most %.0f s, "
                "so they are %.0f s, not dt=%g s",
                *(wind, self.lmax, stable, self._duration / count, wanted),
            )
        return count

    @batch_func()  # type: ignore[untyped-decorator]
    def __call__(self, x: torch.Tensor, coords: Coords) -> State:
        """Forecast one step from a state (..., lead_time = 1, variable = 3, nlat, nlon).

        The result is float32, on the device of the input; NaN if the state is not finite.
        Raises `ValueError` if the geopotential is not positive or the wind needs time steps
        below 1 s.
        """
        return self._forward(x, coords)

    @batch_func()  # type: ignore[untyped-decorator]
    def _rollout(self, x: torch.Tensor, coords: Coords) -> Iterator[State]:
        self.output_coords(coords)
        for state in x[:, 0].float():
            if torch.isfinite(state).all():
                self._count_steps(state)
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
        """Move the module, and import what would delay the first step."""
        import_early("torch_harmonics")
        return super().to(*args, **kwargs)

    def _solver(self, device: torch.device) -> ShallowWaterSolver:
        if device not in self._solvers:
            # Imported here because that takes seconds and a check of the config does not need it.
            from distinf.models.shallow_water_solver import ShallowWaterSolver

            solver = ShallowWaterSolver(self.nlat, self.nlon, self.lmax, self._split)
            self._solvers[device] = solver.to(device)
        return self._solvers[device]


def largest_lmax(nlat: int, nlon: int) -> int:
    """Most degrees for which a grid integrates products of three harmonics exactly."""
    return min((nlat + 2) // 3, (nlon + 2) // 3)


def stable_time_step(lmax: int, wind: float) -> float:
    """Longest time step of the shallow-water model in s.

    The angle by which the wind and the Earth's rotation turn the smallest waves in one time step
    stays below 1.2, with a tenth of room for winds that grow within a step of the forecast.

    For ``lmax`` spherical harmonic degrees and the strongest wind in m s-1: 904 for 86 degrees
    and 80 m s-1.
    """
    wavenumber = sqrt(lmax * (lmax - 1)) / EARTH_RADIUS
    return _LARGEST_ANGLE / (_WIND_ROOM * wind * wavenumber + 2 * EARTH_OMEGA)


def strongest_wind(state: torch.Tensor, lmax: int, geopotential: str) -> float:
    """Largest wind speed in m s-1 of a finite state (u, v, geopotential; lat, lon).

    Raises `ValueError` if the model cannot start from it.
    """
    wind = sqrt(float((state[0].double() ** 2 + state[1].double() ** 2).max()))
    if not (state[2] > 0).all():
        raise ValueError(
            f"the geopotential {geopotential} reaches {float(state[2].min()):g} m2 s-2: "
            "it is that of the layer's surface above its ground, so it must be positive"
        )
    if (stable := stable_time_step(lmax, wind)) < _SHORTEST_DT:
        raise ValueError(
            f"a wind of {wind:.3g} m/s would need time steps of {stable:.1g} s at "
            f"lmax={lmax}: shallow_water takes none below {_SHORTEST_DT:g} s"
        )
    return wind
