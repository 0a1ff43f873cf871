"""Nonlinear balance: the geopotential with which a rotational wind starts without a shock."""

from __future__ import annotations

import numpy as np
import torch

from distinf.models.sphere import EARTH_OMEGA, EARTH_RADIUS, GRAVITY, Array


@torch.no_grad()
def balanced_geopotential(u: Array, v: Array, mean: float) -> Array:
    r"""Geopotential (m2 s-2) for which the divergence of the flow and its tendency are zero.

    Then the divergence equation of the shallow-water system reads :math:`\nabla^2(\Phi +
    |\mathbf{v}|^2/2) = \mathbf{k}\cdot\nabla\times((\zeta + f) \mathbf{v})` for the rotational
    wind :math:`\mathbf{v}` (nonlinear balance equation, Charney 1955, Tellus 7, 22-26). It is
    solved for :math:`\Phi` in spherical harmonics, as many as keep products free of aliasing.

    ``u`` and ``v`` are in m s-1, of shape (nlat, nlon), on rows from 90 to -90 degrees with both
    poles and columns eastward from 0; only their rotational part counts. ``mean`` is the global
    mean of the geopotential.
    """
    from torch_harmonics.examples import ShallowWaterSolver

    nlat, nlon = u.shape
    degrees = (min(nlat, nlon) + 2) // 3
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
