"""Vorticity, divergence, streamfunction and velocity potential of a wind on the sphere."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from earth2studio.models.batch import batch_coords, batch_func
from earth2studio.utils import handshake_coords, handshake_dim

from distinf.compiler import import_early
from distinf.coords import Coords, State
from distinf.models.sphere import EARTH_RADIUS, SphereGrid
from distinf.models.split import Split, split_over

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# ECMWF's short names; Earth2Studio has none for these.
_QUANTITIES = {
    "vo": ("relative vorticity", "s-1", "atmosphere_relative_vorticity"),
    "d": ("divergence of wind", "s-1", "divergence_of_wind"),
    "strf": ("streamfunction", "m2 s-1", "atmosphere_horizontal_streamfunction"),
    "vp": ("velocity potential", "m2 s-1", "atmosphere_horizontal_velocity_potential"),
}
_LARGEST_LMAX = 240


class WindDecomposition(torch.nn.Module):
    r"""Decompose the horizontal wind by vector spherical harmonics, as a diagnostic model.

    With :math:`\mathbf{v} = \mathbf{k}\times\nabla\psi + \nabla\chi`, the transform of the wind
    gives the streamfunction :math:`\psi` and the velocity potential :math:`\chi`, and their
    Laplacians, the relative vorticity and the divergence. Usable on any level of any model, on
    global grids with equally spaced rows, with or without rows at the poles, or Gauss-Legendre
    rows, latitudes in either order.

    Parameters
    ----------
    levels : sequence of int or str, optional
        Levels to decompose, as in the variables' names: 850 for ``u850`` and ``v850``, ``"10m"``
        for ``u10m`` and ``v10m``.
    lmax : int, optional
        Number of spherical harmonic degrees kept, 0 to lmax - 1. By default half the number of
        rows, for which the quadrature is exact, but at most 240: at 721 rows a call then takes
        0.15 s on a CPU; 360 degrees take twice that, 12 s to set up and 1.2 GB.
    radius : float, optional
        Radius of the sphere in m.
    group : torch.distributed.ProcessGroup, optional
        Ranks that share the work: each has a part of the Legendre tables and of the spectra. All of
        them must make the model and each of its calls with the same arguments, with whole fields;
        each gets the whole result. By default one rank does all.

    Raises
    ------
    ValueError
        If there is no level, or `lmax` or `radius` is out of range, or a model in this process is
        shared by another group.
    """

    def __init__(
        self,
        levels: Sequence[int | str] = (850,),
        lmax: int | None = None,
        radius: float = EARTH_RADIUS,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        names = [str(level) for level in levels]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"levels={list(levels)}: name at least one, each once")
        if lmax is not None and lmax < 2:
            raise ValueError(f"lmax={lmax}: must be at least 2")
        if radius <= 0:
            raise ValueError(f"radius={radius}: must be positive")
        self._levels, self._lmax, self._radius = names, lmax, radius
        self._split = split_over(group)
        self._inputs = np.array([f"{wind}{level}" for level in names for wind in "uv"])
        self._outputs = np.array([f"{name}{level}" for level in names for name in _QUANTITIES])
        self._transforms: dict[tuple[object, ...], _Transform] = {}

    def __str__(self) -> str:
        return "wind_decomposition"

    def variable_attributes(self) -> dict[str, dict[str, str]]:
        """``units``, ``long_name`` and CF's ``standard_name`` of each result."""
        return {
            f"{name}{level}": {
                "units": units,
                "long_name": f"{text} at {level if level[-1:].isalpha() else level + ' hPa'}",
                "standard_name": standard,
            }
            for level in self._levels
            for name, (text, units, standard) in _QUANTITIES.items()
        }

    def input_coords(self) -> Coords:
        """Coordinates of its input: ``batch, variable, lat, lon``; the grid is free."""
        return OrderedDict(
            batch=np.empty(0), variable=self._inputs.copy(), lat=np.empty(0), lon=np.empty(0)
        )

    @batch_coords()  # type: ignore[untyped-decorator]
    def output_coords(self, input_coords: Coords) -> Coords:
        """Coordinates of the result: those of the state, of any batch dims, with its variables.

        Raises `ValueError` or `KeyError` if the variables differ from `input_coords()`.
        """
        target = self.input_coords()
        for index, dim in enumerate(target):
            if dim != "batch":
                handshake_dim(input_coords, dim, index)
        handshake_coords(input_coords, target, "variable")
        output = input_coords.copy()
        output["variable"] = self._outputs.copy()
        return output

    @batch_func()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def __call__(self, x: torch.Tensor, coords: Coords) -> State:
        """Decompose a wind [..., variable, lat, lon]: u and v (m s-1) of each level.

        Returns relative vorticity and divergence (s-1), streamfunction and velocity potential
        (m2 s-1) of each level, float32, on the same device. Raises `ValueError` if the grid is not
        global, its rows are of no known kind, or it carries too few degrees for the group.
        """
        output = self.output_coords(coords)
        transform = self._transform(coords["lat"], coords["lon"], x.device)
        wind = x.float().reshape(len(x), len(self._levels), 2, *x.shape[-2:])
        # One field at a time: the last bits of a transform depend on the number of its fields.
        fields = [[transform(level) for level in state] for state in wind]
        return torch.stack([torch.cat(state) for state in fields]), output

    def _transform(self, lat: np.ndarray, lon: np.ndarray, device: torch.device) -> _Transform:
        key = (lat.tobytes(), lon.tobytes(), device)
        if key not in self._transforms:
            grid = SphereGrid.from_coords(lat, lon)
            largest = grid.largest_lmax
            lmax = min(largest, _LARGEST_LMAX) if self._lmax is None else self._lmax
            if lmax > largest:
                raise ValueError(
                    f"lmax={lmax} is too large for {grid.nlat} x {grid.nlon} points: "
                    f"their quadrature is exact up to {largest}"
                )
            if self._split is not None:
                self._split.check(lmax)
            transform = _Transform(grid, lmax, self._radius, self._split)
            self._transforms[key] = transform.to(device)
        return self._transforms[key]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the module, and import what would delay the first call."""
        import_early("torch_harmonics")
        return super().to(*args, **kwargs)


class _Transform(torch.nn.Module):
    """The decomposition on one grid: (2, nlat, nlon) to (4, nlat, nlon)."""

    def __init__(self, grid: SphereGrid, lmax: int, radius: float, split: Split | None) -> None:
        # This import takes seconds, and a check of the config does not need it.
        from distinf.models.transforms import make_transform

        super().__init__()
        shape = (grid.quadrature_nlat, grid.nlon, lmax, grid.quadrature, split)
        self._grid = grid
        self._forward = make_transform("RealVectorSHT", *shape)
        self._inverse = make_transform("InverseRealSHT", *shape)
        degree = torch.arange(lmax, dtype=torch.float64)
        self._radius = radius
        self.register_buffer("laplacian", (-degree * (degree + 1) / radius**2).float()[:, None])

    def forward(self, wind: torch.Tensor) -> torch.Tensor:
        potentials = self._forward(self._grid.to_quadrature(wind)) * self._radius
        spectra = torch.cat([self.laplacian * potentials, potentials])
        fields: torch.Tensor = self._grid.from_quadrature(self._inverse(spectra))
        return fields
