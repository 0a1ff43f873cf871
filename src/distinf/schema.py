"""The forecast store's schema: its metadata from coordinates, and what must match to resume."""

from __future__ import annotations

import json
import re
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec

from distinf.errors import ConfigError

__all__ = [
    "check_clashes",
    "check_names",
    "create",
    "differences",
    "extend",
    "mark",
    "mismatches",
    "shape",
    "step_bytes",
    "vocabulary",
]

Coords = OrderedDict[str, np.ndarray]

_COORD_ATTRIBUTES = {
    "lat": {"units": "degrees_north", "standard_name": "latitude", "long_name": "latitude"},
    "lon": {"units": "degrees_east", "standard_name": "longitude", "long_name": "longitude"},
    "time": {"standard_name": "forecast_reference_time", "long_name": "initial time"},
    "lead_time": {"standard_name": "forecast_period", "long_name": "lead time"},
    "ensemble": {"standard_name": "realization", "long_name": "ensemble member"},
}

# Zarr's default, with a checksum: a file that a lost node left half written is recognized.
_CODEC = ZstdCodec(level=0, checksum=True)

# Keys that decide no bytes, but for those of `runtime` that do.
_FREE = (
    r"runtime\..*",
    "slurm",
    "output",
    "recipe",
    r"parameters\.output_path",
    r"diagnostic\.[^.]*\.workers",
    r"prognostic\.restartable",
)
_DECIDING = ("runtime.batch", "runtime.seed", "runtime.threads")


def create(
    store: Store,
    axes: Coords,
    diagnostics: Mapping[str, Coords],
    attributes: Mapping[str, Mapping[str, str]],
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    shards: int | None = None,
) -> None:
    """Create the store's metadata, with nothing complete.

    Parameters
    ----------
    store : zarr.abc.store.Store
        An empty one.
    axes : Coords
        The leading dimensions: (ensemble,) time, lead_time.
    diagnostics, attributes, config, versions
        As `distinf.output.ForecastStore`.
    shards : int | None, optional
        Lead times in one file, by default None: one chunk, one file.
    """
    template = xr.Dataset(
        coords={key: (key, values, _COORD_ATTRIBUTES[key]) for key, values in axes.items()},
        attrs={
            "Conventions": "CF-1.11",
            "title": "Diagnosed forecast",
            "history": f"{datetime.now(UTC).isoformat(timespec='seconds')} created by distinf",
            "config": json.dumps(config, default=str),
            "versions": json.dumps(dict(versions)),
        },
    )
    dims: dict[str, list[str]] = {}
    for name, coords in diagnostics.items():
        grid = OrderedDict((k, v) for k, v in coords.items() if k not in (*axes, "variable"))
        template, own = _add_grid(template, name, grid)
        dims[name] = [*axes, *own]
    encoding = {
        "time": {"units": "seconds since 1970-01-01", "dtype": "int64"},
        "lead_time": {"units": "seconds", "dtype": "int64"},
    }
    ones = [1] * len(axes)
    leads = min(shards or 1, len(axes["lead_time"]))
    with _consolidated_is_not_in_the_specification():
        template.to_zarr(store, mode="a", zarr_format=3, consolidated=False, encoding=encoding)
        group = zarr.open_group(store, mode="r+", use_consolidated=False)
        for name, coords in diagnostics.items():
            shape = [template.sizes[dim] for dim in dims[name]]
            grid_shape = shape[len(axes) :]
            for variable in coords["variable"]:
                group.create_array(
                    str(variable),
                    shape=shape,
                    chunks=[*ones, *grid_shape],
                    shards=[*ones[:-1], leads, *grid_shape] if leads > 1 else None,
                    dtype="float32",
                    compressors=_CODEC,
                    fill_value=np.nan,
                    dimension_names=dims[name],
                    attributes={"diagnostic": name, **attributes.get(str(variable), {})},
                )
            group.create_array(
                mark(name),
                shape=shape[: len(axes)],
                chunks=[*ones[:-1], leads],
                dtype="bool",
                compressors=_CODEC,
                fill_value=False,
                dimension_names=list(axes),
                attributes={"long_name": f"whether this step of {name} is complete"},
            )
        zarr.consolidate_metadata(store)


def _add_grid(template: xr.Dataset, name: str, grid: Coords) -> tuple[xr.Dataset, list[str]]:
    """Add a diagnostic's grid, under names of its own where another one's is different."""
    from earth2studio.utils.coords import convert_multidim_to_singledim

    flat, mapping = convert_multidim_to_singledim(grid)
    arrays = {key: ([key], values) for key, values in flat.items()}
    arrays.update({key: (list(own), grid[key]) for key, own in mapping.items()})
    taken = {
        key
        for key, (own, values) in arrays.items()
        if key in template.coords
        and not (list(template[key].dims) == own and np.array_equal(template[key].values, values))
    }
    if taken:  # the whole grid, so that each dimension stands with its like
        taken = set(arrays)
    names = {key: f"{key}_{name}" if key in taken else key for key in arrays}
    for key, (own, values) in arrays.items():
        dims = [names[dim] for dim in own]
        attributes = _COORD_ATTRIBUTES.get(key, {})
        template = template.assign_coords({names[key]: (dims, values, attributes)})
    return template, [names[key] for key in flat]


def vocabulary(variable: str) -> dict[str, str]:
    """``units`` and ``long_name`` of a variable of Earth2Studio's vocabulary; empty if unknown."""
    from earth2studio.lexicon.base import E2STUDIO_VOCAB

    described = re.fullmatch(r"(.*) \(([^()]*)\)", E2STUDIO_VOCAB.get(variable, ""))
    return {"long_name": described[1], "units": described[2]} if described else {}


def mark(diagnostic: str) -> str:
    """Name of the array that says which steps of a diagnostic are complete."""
    return f"{diagnostic}_complete"


def shape(coords: Coords) -> tuple[int, ...]:
    """Shape of a tensor with these coords; an n-dimensional grid stands n times."""
    return tuple(v.shape[i] if v.ndim > 1 else len(v) for i, v in _axes(coords))


def _axes(coords: Coords) -> Iterator[tuple[int, np.ndarray]]:
    axis = 0
    for values in coords.values():
        yield axis, values
        axis = (axis + 1) % values.ndim if values.ndim > 1 else 0


def check_names(renames: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse names that the store keeps for itself, as far as the config tells.

    Parameters
    ----------
    renames : Mapping[str, Mapping[str, str]]
        New names of the variables of each diagnostic.
    """
    for name, rename in renames.items():
        if why := _kept(name):
            raise ConfigError(f"diagnostic.{name}: {why}; give the diagnostic another name")
        for old, new in rename.items():
            if why := _kept(new):
                raise ConfigError(
                    f"diagnostic.{name}.rename={{{old}: {new}}}: {why}; choose another name"
                )


def check_clashes(diagnostics: Mapping[str, Coords]) -> None:
    """Refuse diagnostics that make the same variable, or one that the store keeps for itself."""
    from earth2studio.utils.coords import convert_multidim_to_singledim

    coordinates: set[str] = set()
    for name, coords in diagnostics.items():
        grid = OrderedDict((k, v) for k, v in coords.items() if k != "variable")
        flat, own = convert_multidim_to_singledim(grid)
        coordinates.update(found for key in (*flat, *own) for found in (key, f"{key}_{name}"))
    seen: dict[str, str] = {}
    for name, coords in diagnostics.items():
        if why := _kept(name, coordinates):
            raise ConfigError(f"diagnostic.{name}: {why}; give the diagnostic another name")
        for variable in map(str, coords["variable"]):
            if why := _kept(variable, coordinates):
                raise ConfigError(
                    f"{name} makes the variable {variable}: {why}; give it another name by "
                    f"diagnostic.{name}.rename"
                )
            if variable in seen:
                raise ConfigError(
                    f"{seen[variable]} and {name} both make the variable {variable}: rename one, "
                    f"such as diagnostic.{name}.rename={{{variable}: {variable}_{name}}}"
                )
            seen[variable] = name


def _kept(name: str, coordinates: Collection[str] = ()) -> str:
    """Why a name is the store's own; empty if it is not."""
    if name in _COORD_ATTRIBUTES or name == "variable" or name in coordinates:
        return f"{name} is a coordinate of the store"
    if name.endswith(mark("")):
        return f"names that end in {mark('')} tell which steps of a diagnostic are complete"
    return ""


def extend(store: Store, axes: Coords, diagnostics: Mapping[str, Coords], config: Any) -> None:
    """Make room for more lead times in a store; arguments as :func:`create`.

    What was there stays. The consolidated metadata changes last, so that a run killed meanwhile
    leaves the store as it was to whoever opens it.
    """
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    leads = axes["lead_time"]
    if group["lead_time"].shape == leads.shape:
        return
    where = list(axes).index("lead_time")
    for name, coords in diagnostics.items():
        for array in (mark(name), *map(str, coords["variable"])):
            size = list(group[array].shape)
            size[where] = len(leads)
            group[array].resize(tuple(size))
    group["lead_time"].resize(leads.shape)
    group["lead_time"][:] = (leads / np.timedelta64(1, "s")).astype(np.int64)
    group.attrs["config"] = json.dumps(config, default=str)
    with _consolidated_is_not_in_the_specification():
        zarr.consolidate_metadata(store)


def step_bytes(coords: Coords, leading: int) -> int:
    """Bytes of one result with these coords, the first ``leading`` dimensions being of one each."""
    return 4 * int(np.prod(shape(coords)[leading:]))


def mismatches(
    store: Store, axes: Coords, diagnostics: Mapping[str, Coords], config: Mapping[str, Any]
) -> list[str]:
    """Why an existing store cannot be resumed; empty if it can. Arguments as :func:`create`."""
    written = zarr.open_group(store, mode="r").attrs.get("config")
    if not isinstance(written, str):
        return ["it was not made by distinf"]
    problems = [
        f"{key}: the store has {was}, this run {now}"
        for key, was, now in differences(
            json.loads(written), json.loads(json.dumps(config, default=str))
        )
    ]
    if problems:
        return problems
    with xr.open_zarr(store) as there:
        wanted: dict[str, np.ndarray] = dict(axes)
        names: set[str] = set()
        for name, coords in diagnostics.items():
            wanted.update((k, v) for k, v in coords.items() if k not in (*wanted, "variable"))
            names |= {mark(name), *map(str, coords["variable"])}
        for key, mine in wanted.items():
            has = there[key].values if key in there.coords else "none"
            longer = key == "lead_time" and len(mine) > len(has)
            if not np.array_equal(has, mine[: len(has)] if longer else mine):
                problems.append(f"{key}: the store has {has}, this run {mine}")
        if not names <= set(there):
            has = ", ".join(sorted(map(str, there)))
            problems.append(f"variables: the store has {has}, this run {', '.join(sorted(names))}")
    return problems


def differences(
    was: Mapping[str, Any], now: Mapping[str, Any], where: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Keys that decide the bytes and differ."""
    for key in sorted({*was, *now}):
        path = f"{where}{key}"
        if path not in _DECIDING and any(re.fullmatch(free, path) for free in _FREE):
            continue
        a, b = was.get(key), now.get(key)
        if path == "parameters.nsteps" and isinstance(a, int) and isinstance(b, int) and b > a:
            continue  # more steps change none of the first ones
        if isinstance(a or {}, dict) and isinstance(b or {}, dict) and (a or b):
            yield from differences(a or {}, b or {}, f"{path}.")
        elif json.dumps(a, default=str) != json.dumps(b, default=str):
            yield path, a, b


@contextmanager
def _consolidated_is_not_in_the_specification() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        warnings.filterwarnings("ignore", message="Object at .distinf")
        yield
