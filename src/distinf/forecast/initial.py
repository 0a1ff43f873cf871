"""Initial conditions: read on the prognostic's grid, and perturbed for each member."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch

from distinf.coords import Coords, State, check_covered, plan
from distinf.errors import ConfigError
from distinf.forecast.batching import tasks
from distinf.loading import unreachable, unread
from distinf.seeds import seed_of, seeded

_PROGNOSTIC, _DATA = "the prognostic", "the data"  # in errors

Perturb = Callable[[torch.Tensor, Coords], State]


def read(prognostic: Any, data: Any, times: np.ndarray, device: torch.device | str) -> State:
    """Read initial conditions [time, lead_time, variable, ...] on the prognostic's grid.

    Raises `ConfigError` if the data source cannot be reached, or has another grid.
    """
    from earth2studio.data import fetch_data

    wanted = prognostic.input_coords()
    method = getattr(prognostic, "interp_method", None)
    regrid = {}
    if method is not None:
        regrid = {"interp_to": wanted, "interp_method": method}
        data = _covering(data, wanted)
    try:
        x, coords = fetch_data(
            source=data,
            time=times,
            variable=wanted["variable"],
            lead_time=wanted["lead_time"],
            device=device,
            **regrid,
        )
    except Exception as error:
        if (why := unreachable(error)) is None:
            raise
        raise ConfigError(unread(type(data).__name__, why)) from error
    return plan(coords, wanted, _PROGNOSTIC, _DATA)(x, coords)


def check_initial(prognostic: Any, data: Any) -> None:
    """Raise `ConfigError` if a prognostic cannot start from the grid of a data source.

    Only a source with ``grid``, a mapping with ``lat`` and ``lon``, is checked. The error names
    both grids.
    """
    grid = getattr(data, "grid", None)
    if grid is None:
        return
    wanted = prognostic.input_coords()
    if getattr(prognostic, "interp_method", None) is not None:
        check_covered(grid, wanted["_lat"], wanted["_lon"], _PROGNOSTIC, _DATA)
        return
    plan(grid, {key: wanted[key] for key in grid if key in wanted}, _PROGNOSTIC, _DATA)


def perturb(
    perturbation: Callable[..., Any], seed: int, prognostic: Any = None, data: Any = None
) -> Perturb:
    """Return a function that perturbs a state [ensemble=1, time=1, ...] of one member.

    ``perturbation`` is a class of Earth2Studio's, or a ``functools.partial`` of it. It is
    constructed for each time and member, because some continue a sequence of draws. So the result
    depends only on the run's ``seed``, the time and the member. If it takes ``seed``, ``model`` or
    ``data`` and has no value for it, it gets a seed, ``prognostic``, or ``data`` on the grid of
    ``prognostic``.
    """
    given = getattr(perturbation, "keywords", {})
    taken = set(inspect.signature(perturbation).parameters) - {
        key for key, value in given.items() if value is not None
    }
    both = prognostic is not None and data is not None
    bred = {"model": prognostic, "data": _on_own_grid(prognostic, data) if both else data}

    def apply(x: torch.Tensor, coords: Coords) -> State:
        own = seed_of(seed, "perturbation", OrderedDict(coords, lead_time=np.array([])))
        more = {key: value for key, value in bred.items() if key in taken}
        if "seed" in taken:
            more["seed"] = own
        with seeded(own, x.device):
            y, y_coords = perturbation(**more)(x, coords)
        return y, y_coords

    return apply


def members_of(
    x: torch.Tensor, coords: Coords, members: np.ndarray, perturbation: Perturb | None
) -> State:
    """Repeat an initial condition for each member; perturb each time and member alone."""
    repeated = x.unsqueeze(0).repeat(len(members), *([1] * x.ndim))
    ensemble: Coords = OrderedDict(ensemble=members, **coords)
    if perturbation is not None:
        for part, own in tasks(repeated, ensemble):
            part.copy_(perturbation(part.clone(), own)[0])
    return repeated, ensemble


def _on_own_grid(prognostic: Any, data: Any) -> Any:
    """Wrap a data source so that it selects the prognostic's grid, or raises `ConfigError`."""
    wanted = prognostic.input_coords()

    def select(array: Any) -> Any:
        own = OrderedDict((str(dim), array[dim].values) for dim in array.dims)
        cut = plan(own, {k: v for k, v in wanted.items() if k in own}, _PROGNOSTIC, _DATA)
        for dim, index in cut.indices.items():
            array = array.isel({array.dims[dim]: np.arange(array.shape[dim])[index]})
        return array.assign_coords(cut.coords)

    return _wrapped(data, select)


def _covering(data: Any, wanted: Coords) -> Any:
    """Wrap a data source so that it raises `ConfigError` if it does not cover the model's grid."""

    def check(array: Any) -> Any:
        lat, lon = ("lat", "lon") if "lat" in array.coords else ("_lat", "_lon")
        grid = {"lat": array[lat].values, "lon": array[lon].values}
        check_covered(grid, wanted["_lat"], wanted["_lon"], _PROGNOSTIC, _DATA)
        return array

    return _wrapped(data, check)


def _wrapped(data: Any, change: Callable[[Any], Any]) -> Any:
    """Return a data source of the same kind whose fields are changed."""

    class Changed:
        @wraps(type(data).__call__)  # Earth2Studio recognises the kind by the signature
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return change(data(*args, **kwargs))

    return Changed()
