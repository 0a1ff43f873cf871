"""What a report shows of a store, chosen so that little of it is read, and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distinf.errors import ConfigError
from distinf.html_report.grid import Grid, grid_of

if TYPE_CHECKING:
    import xarray as xr

_LEADING = ("ensemble", "time", "lead_time")
_MAPS = 4  # steps that are drawn as maps
_SERIES = 60  # steps and members of a series, at most
_SERIES_MEMBERS = 10
_VARIABLES = 8  # that are drawn if the user does not choose
_OF_ONE = 3  # of one diagnostic, if there are several
_POINTS = 700  # along each axis of a map: there are no more pixels
_CELLS = 200_000  # of a grid without rows


@dataclass(frozen=True)
class Plan:
    """Indices of the steps and members of a variable that are read."""

    map_steps: tuple[int, ...]
    map_members: tuple[int, ...]
    series_steps: tuple[int, ...]
    series_members: tuple[int, ...]

    @property
    def fields(self) -> int:
        """Number of the fields that are read."""
        maps = {(s, m) for s in self.map_steps for m in self.map_members}
        return len(maps | {(s, m) for s in self.series_steps for m in self.series_members})


@dataclass(frozen=True, eq=False)
class Shown:
    """What is shown of one variable.

    Attributes
    ----------
    name, title, units, diagnostic : str
        The variable, in words, and what computed it.
    grid : Grid | None
        Of the maps; None of a variable without maps, such as a score.
    every : int
        The maps show every n-th point of each axis.
    steps : np.ndarray
        Lead times, timedelta64[ns], or times, datetime64[ns], of the maps.
    mean : list[np.ndarray]
        A map [y, x] or [point] for each step: the field, or the mean of ``map_members`` members.
    spread : list[np.ndarray | None]
        The standard deviation over these members; None if there is but one.
    series_steps : np.ndarray
        Lead times or times of the series.
    series : np.ndarray
        Area means [member, step], float64.
    weighted : bool
        Whether they are weighted by the area of the cells.
    members, map_members : int
        Members in the store, and those of which every map has a field.
    all_steps : int
        Steps in the store.
    """

    name: str
    title: str
    units: str
    diagnostic: str
    grid: Grid | None
    every: int
    steps: np.ndarray
    mean: list[np.ndarray]
    spread: list[np.ndarray | None]
    series_steps: np.ndarray
    series: np.ndarray
    weighted: bool
    members: int
    map_members: int
    all_steps: int


def make_plan(steps: int, members: int, fields: int, map_steps: Sequence[int] | None) -> Plan:
    """Choose steps and members so that about ``fields`` fields are read, and one map at least.

    ``map_steps`` are the user's; None: a few, the last one among them.
    """
    if map_steps is None:
        map_steps = _evenly(steps, min(_MAPS, max(1, fields)))[-_MAPS:]
    for_maps = fields if steps == 1 else fields // 2
    map_members = _evenly(members, for_maps // len(map_steps))
    left = fields - len(map_steps) * len(map_members)
    series_members = _evenly(members, min(_SERIES_MEMBERS, max(1, left // len(map_steps))))
    series_steps = _evenly(steps, min(_SERIES, left // len(series_members)))
    return Plan(tuple(map_steps), map_members, series_steps, series_members)


def _evenly(number: int, wanted: int) -> tuple[int, ...]:
    """Choose indices below ``number``, at least one, evenly; the last one first of all."""
    wanted = min(max(1, wanted), number)
    if wanted == 1:
        return (number - 1,)
    return tuple(int(i) for i in np.linspace(0, number - 1, wanted).round())


def choose_variables(store: xr.Dataset, wanted: Sequence[str] | None) -> list[str]:
    """Return the user's variables, or the first ones of each diagnostic.

    Raises `ConfigError` if the store does not have one of them.
    """
    results = {str(name): array for name, array in store.items() if "diagnostic" in array.attrs}
    if wanted is not None:
        for name in wanted:
            if name not in results:
                raise ConfigError(
                    f"report.variables: the store has no variable {name}; it has "
                    f"{', '.join(results)}"
                )
        return list(wanted)
    by_diagnostic: dict[str, list[str]] = {}
    for name, array in results.items():
        by_diagnostic.setdefault(str(array.attrs["diagnostic"]), []).append(name)
    # A report computes mean and spread itself where the members are there.
    own = {d: names for d, names in by_diagnostic.items() if not _repeats(d, by_diagnostic)}
    most = _VARIABLES if len(own) == 1 else _OF_ONE
    chosen = [name for names in own.values() for name in names[:most]]
    return chosen[:_VARIABLES]


def _repeats(diagnostic: str, others: dict[str, list[str]]) -> bool:
    return diagnostic.endswith("_statistics") and diagnostic.removesuffix("_statistics") in others


def read_shown(
    field: xr.DataArray,
    time: np.datetime64 | None,
    lead_times: np.ndarray | None,
    nbytes: float,
) -> Shown:
    """Read what is shown of a variable.

    Parameters
    ----------
    field : xr.DataArray
        (ensemble,) time, lead_time and the grid's dimensions; it is read field by field.
    time : np.datetime64 | None
        Initial time; None: the first one.
    lead_times : np.ndarray | None
        Lead times of the maps, timedelta64[ns]; None: a few.
    nbytes : float
        What may be read, but one field at least.

    Raises
    ------
    ConfigError
        If the store has no such time or lead time.
    """
    leading = tuple(dim for dim in _LEADING if dim in field.dims)
    axis = "lead_time" if field.sizes["lead_time"] > 1 or field.sizes["time"] == 1 else "time"
    fixed = {"time": _index(field, "time", time)} if axis == "lead_time" else {"lead_time": 0}
    one = field.isel({dim: 0 for dim in leading})
    chosen = None
    if lead_times is not None:
        leads = [_index(field, "lead_time", lead) for lead in lead_times]
        chosen = leads if axis == "lead_time" else None
    if time is not None and axis == "time":
        chosen = [_index(field, "time", time)]
    members = field.sizes.get("ensemble", 1)
    fields = int(nbytes // max(1, one.size * one.dtype.itemsize))
    plan = make_plan(field.sizes[axis], members, fields, chosen)
    grid = grid_of(field, leading) if one.ndim else None
    longest, most = (max(one.shape, default=1), _POINTS) if one.ndim == 2 else (one.size, _CELLS)
    every = -(-longest // most)
    weights = None if grid is None else grid.weights()

    def read(step: int, member: int) -> np.ndarray:
        ensemble = {"ensemble": member} if "ensemble" in field.dims else {}
        return np.asarray(field.isel({**fixed, **ensemble, axis: step}).values)

    means: dict[tuple[int, int], float] = {}
    mean: list[np.ndarray] = []
    spread: list[np.ndarray | None] = []
    used = len(plan.map_members)
    for step in plan.map_steps:
        drawn = []
        for member in plan.map_members:
            values = read(step, member)
            means[step, member] = area_mean(values, weights)
            drawn.append(_thin(values, every))
        known = [values for values in drawn if np.isfinite(values).any()]
        used = min(used, len(known))
        known = known or drawn[:1]
        mean.append(np.asarray(np.mean(known, axis=0, dtype=np.float64)))
        spread.append(_spread(known) if members > 1 and len(drawn) > 1 else None)
    for step in plan.series_steps:
        for member in plan.series_members:
            if (step, member) not in means:
                means[step, member] = area_mean(read(step, member), weights)
    series = [[means[step, m] for step in plan.series_steps] for m in plan.series_members]
    steps = field[axis].values
    return Shown(
        name=str(field.name),
        title=str(field.attrs.get("long_name", field.name)),
        units=str(field.attrs.get("units", "")),
        diagnostic=str(field.attrs.get("diagnostic", "")),
        grid=None if grid is None else grid.thinned(every),
        every=every,
        steps=steps[list(plan.map_steps)],
        mean=mean,
        spread=spread,
        series_steps=steps[list(plan.series_steps)],
        series=np.array(series),
        weighted=weights is not None,
        members=members,
        map_members=used,
        all_steps=len(steps),
    )


def _spread(fields: Sequence[np.ndarray]) -> np.ndarray:
    """Return the standard deviation of the members; NaN if there is but one."""
    if len(fields) < 2:
        return np.full_like(fields[0], np.nan, dtype=np.float64)
    return np.asarray(np.std(fields, axis=0, dtype=np.float64, ddof=1))


def area_mean(values: np.ndarray, weights: np.ndarray | None) -> float:
    """Mean of a field, weighted by the areas of its cells if they are known; NaN is left out."""
    known = np.isfinite(values)
    if not known.any():
        return float("nan")
    own = None if weights is None else weights[known]
    return float(np.average(values[known].astype(np.float64), weights=own))


def _thin(values: np.ndarray, every: int) -> np.ndarray:
    return values[::every, ::every] if values.ndim == 2 else values.ravel()[::every]


def _index(field: xr.DataArray, dim: str, wanted: np.datetime64 | np.timedelta64 | None) -> int:
    """Return the index of a time or a lead time; that of the first one for None."""
    if wanted is None:
        return 0
    found = np.flatnonzero(field[dim].values == wanted)
    if not found.size:
        key = "report.time" if dim == "time" else "report.lead_times"
        raise ConfigError(f"{key}: the store has no {dim.replace('_', ' ')} {words(wanted)}")
    return int(found[0])


def words(step: np.datetime64 | np.timedelta64 | np.integer) -> str:
    """Write a time, a lead time in hours or the number of a member for people."""
    if isinstance(step, np.timedelta64):
        return f"+{step / np.timedelta64(1, 'h'):g} h"
    if isinstance(step, np.integer):
        return f"member {step}"
    return str(np.datetime_as_string(step, unit="m")).replace("T", " ")
