"""Nonlinear balance: the geopotential that a rotational wind needs to start without a shock."""

from __future__ import annotations

import numpy as np
import torch

from distinf.models.sphere import EARTH_OMEGA, EARTH_RADIUS, GRAVITY, Array


@torch.no_grad()
def balanced_geopotential(
    u: Array, v: Array, mean: float = 10e3 * GRAVITY, lmax: int | None = None
) -> Array:
    r"""Geopotential for which the divergence of the flow is zero and stays so at first.

    With no divergence and no tendency of it, the divergence equation of the shallow-water system
    reads :math:`\nabla^2(\Phi + |\mathbf{v}|^2/2) = \mathbf{k}\cdot\nabla\times((\zeta + f)
    \mathbf{v})` for the rotational wind :math:`\mathbf{v}` (nonlinear balance equation, Charney
    1955, Tellus 7, 22-26). It is solved for :math:`\Phi` in spherical harmonics.

    Parameters
    ----------
    u, v : numpy.ndarray
        Wind in m s-1 on rows from 90 to -90 degrees with both poles and columns eastward from 0,
        of shape (nlat, nlon). Only its rotational part counts.
    mean : float, optional
        Global mean of the geopotential in m2 s-2.
    lmax : int, optional
        Number of spherical harmonic degrees; by default (nlat + 2) // 3, for which the products
        are free of aliasing.

    Returns
    -------
    numpy.ndarray
        Geopotential in m2 s-2, float64, of shape (nlat, nlon).

    Raises
    ------
    ValueError
        If `u` and `v` are not two fields of one shape.
    """
    from torch_harmonics.examples import ShallowWaterSolver

    if u.ndim != 2 or u.shape != v.shape:
        raise ValueError(f"u and v must have one shape (nlat, nlon), not {u.shape} and {v.shape}")
    nlat, nlon = u.shape
    degrees = (min(nlat, nlon) + 2) // 3 if lmax is None else lmax
    solver = ShallowWaterSolver(
        nlat,
        nlon,
        dt=1.0,
        lmax=degrees,
        mmax=degrees,
        radius=EARTH_RADIUS,
        omega=EARTH_OMEGA,
        gravity=GRAVITY,
    ).double()
    rotation = solver.vrtdivspec(torch.from_numpy(np.stack([u, v]).astype(np.float64)))
    rotation[1] = 0
    wind = solver.getuv(rotation)
    vorticity = solver.spec2grid(rotation[0])
    # The curl of the flux of absolute vorticity, and the divergence that is not needed.
    curl = solver.vrtdivspec(wind * (vorticity + solver.coriolis))[0]
    geopotential = solver.invlap * curl - solver.grid2spec(0.5 * (wind**2).sum(dim=0))
    geopotential[0, 0] = mean * (4 * torch.pi) ** 0.5
    return np.asarray(solver.spec2grid(geopotential))
