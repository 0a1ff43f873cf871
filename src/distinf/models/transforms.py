"""Spherical harmonic transforms of torch-harmonics on latitude-longitude grids, in float32.

On one rank, or on the ranks of a group by `torch_harmonics.distributed`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch_harmonics
from torch_harmonics import legendre
from torch_harmonics.quadrature import precompute_latitudes

from distinf.models.split import Split

Kind = Literal["RealSHT", "RealVectorSHT", "InverseRealSHT", "InverseRealVectorSHT"]

# Elements of a table that are computed at once, in float64 and with ten times their memory.
_ELEMENTS = 2**23


def make_transform(
    kind: Kind,
    nlat: int,
    nlon: int,
    lmax: int,
    grid: str = "equiangular",
    split: Split | None = None,
) -> torch.nn.Module:
    """Make a transform of torch-harmonics, orthonormal and without the Condon-Shortley phase.

    Parameters
    ----------
    kind : {"RealSHT", "RealVectorSHT", "InverseRealSHT", "InverseRealVectorSHT"}
        The class of torch-harmonics.
    nlat, nlon : int
        Size of the grid.
    lmax : int
        Number of degrees and of orders.
    grid : str, optional
        Kind of the grid in torch-harmonics.
    split : Split, optional
        How spectra are split over the ranks of a group, each of which must then call the
        transform with the same arguments.

    Returns
    -------
    torch.nn.Module
        From float32 fields (..., nlat, nlon) to complex64 spectra (..., lmax, order), or back.
        Fields are whole on every rank; spectra have the orders that the rank owns.
    """
    # torch-harmonics makes its tables in float64, with three times their memory for those of
    # scalars and five for those of vectors, and keeps them for the process. So make the transform
    # with the fewest degrees, and give it float32 tables that are made a few orders at a time.
    least = 1 if split is None else split.size
    library = torch_harmonics if split is None else torch_harmonics.distributed
    made = getattr(library, kind if split is None else f"Distributed{kind}")(
        nlat, nlon, lmax=least, mmax=least, grid=grid, csphase=False
    )
    made.lmax = made.mmax = lmax
    orders = range(lmax)
    if split is not None:
        orders = orders[split.part(lmax)]
        made.m_shapes = split.lengths(lmax)
        made.mmax_offset, made.mmax_local = orders.start, len(orders)
        made.l_shapes, made.lmax_local = [lmax], lmax
    (name,) = dict(made.named_buffers())
    setattr(made, name, _table(kind, nlat, lmax, grid, orders))
    return made if split is None else _OverRanks(made, nlon, split)


class _OverRanks(torch.nn.Module):
    """A transform of `torch_harmonics.distributed`, of whole fields."""

    def __init__(self, transform: torch.nn.Module, nlon: int, split: Split) -> None:
        super().__init__()
        self._transform, self._nlon, self._split = transform, nlon, split

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        back = x.is_complex()
        if not back:
            x = x[..., self._split.part(self._nlon)]
        # The transforms of vectors want a dimension before the components.
        result: torch.Tensor = self._transform(x[None])[0]
        return self._split.gather(result, self._nlon) if back else result


def _table(kind: Kind, nlat: int, lmax: int, grid: str, orders: range) -> torch.Tensor:
    """Legendre functions as torch-harmonics wants them, with the quadrature weights: float32.

    Of shape (..., order, degree, row), or (..., order, row, degree) for the way back.
    """
    shape = (lmax, nlat) if kind.startswith("Real") else (nlat, lmax)
    vector = (2,) if "Vector" in kind else ()
    table = torch.empty(*vector, len(orders), *shape)
    count = max(1, _ELEMENTS // (lmax * nlat))
    for start in range(0, len(orders), count):
        few = orders[start : start + count]
        table[..., start : start + len(few), :, :] = _few_orders(kind, nlat, lmax, grid, few)
    return table


def _few_orders(kind: Kind, nlat: int, lmax: int, grid: str, orders: range) -> torch.Tensor:
    """Compute some orders of a table, with the values of torch-harmonics' own, in float64."""
    latitudes, weights = precompute_latitudes(nlat, grid=grid)
    vector = "Vector" in kind
    options: dict[str, Any] = {"inverse": kind.startswith("Inverse"), "csphase": False}
    positions = latitudes if vector else torch.cos(latitudes)
    table: torch.Tensor
    if hasattr(legendre, "dlegpoly"):
        compute = legendre.dlegpoly if vector else legendre.legpoly
        table = compute(orders.stop, lmax, positions, mmin=orders.start, **options)
        weights = 2 * torch.pi * weights
    else:  # torch-harmonics 0.9.2, the newest one for torch 2.11; it multiplies fields by 2 pi
        compute = legendre._precompute_dlegpoly if vector else legendre.legpoly
        table = compute(orders.stop, lmax, positions, **options)[..., orders.start :, :, :]
    if kind == "RealSHT":
        table *= weights
    elif kind == "RealVectorSHT":
        # Vector harmonics have the norm l (l + 1); the second component has the other sign.
        degree = torch.arange(1, lmax)
        factor = torch.cat([torch.ones(1), 1.0 / degree / (degree + 1)])
        east, north = table * weights * factor[:, None]
        table = torch.stack([east, -north])
    else:
        table = table.transpose(-1, -2)
    return table
