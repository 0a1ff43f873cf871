"""Members of an ensemble: the same initial condition, each perturbed with a seed of its own."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from distinf.forecast.prognostic import on_own_grid
from distinf.seeds import seed_of, seeded

__all__ = ["perturb"]

Coords = OrderedDict[str, np.ndarray]


def perturb(
    perturbation: Callable[..., Any], seed: int, prognostic: Any = None, data: Any = None
) -> Callable[[torch.Tensor, Coords], tuple[torch.Tensor, Coords]]:
    """Make the function that perturbs one member's initial condition.

    Parameters
    ----------
    perturbation : Callable[..., Perturbation]
        Class of one of Earth2Studio's perturbations, or a ``functools.partial`` of it. It is made
        anew for each date and member, since some go on drawing where they stopped. Arguments
        ``seed``, ``model`` and ``data`` that it takes and has not been given are given here.
    seed : int
        The run's seed.
    prognostic, data : PrognosticModel, DataSource, optional
        For perturbations that are bred with a model; what they read of ``data`` lies on the grid
        of ``prognostic``.

    Returns
    -------
    Callable
        Takes a state [ensemble=1, time=1, ...] and its coords and returns them perturbed; the same
        for the same seed, date and member, whatever was perturbed before.
    """
    given = getattr(perturbation, "keywords", {})
    taken = set(inspect.signature(perturbation).parameters) - {
        key for key, value in given.items() if value is not None
    }
    both = prognostic is not None and data is not None
    bred = {"model": prognostic, "data": on_own_grid(prognostic, data) if both else data}

    def apply(x: torch.Tensor, coords: Coords) -> tuple[torch.Tensor, Coords]:
        own = seed_of(seed, "perturbation", OrderedDict(coords, lead_time=np.array([])))
        more = {key: value for key, value in bred.items() if key in taken}
        if "seed" in taken:
            more["seed"] = own
        with seeded(own, x.device):
            y, y_coords = perturbation(**more)(x, coords)
        return y, y_coords

    return apply
