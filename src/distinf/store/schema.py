"""The forecast store's schema: which arrays and coordinates a store holds, and one that grows.

`plan_schema` tells what a run needs from its coordinates alone. A new store is created from it,
and an existing one is compared with it before anything is touched. The store's root metadata is
replaced in one write at the end of each change, with the metadata of all arrays inside it
(consolidated): until then whoever opens the store sees what was there before.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec

from distinf.coords import Coords
from distinf.errors import ConfigError
from distinf.store.destination import Destination

__all__ = [
    "ArraySchema",
    "Schema",
    "check_clashes",
    "check_names",
    "create",
    "leads_in_file",
    "mark",
    "mismatches",
    "plan_schema",
    "settle",
    "shape",
    "step_bytes",
    "vocabulary",
]


_COORD_ATTRIBUTES = {
    "lat": {"units": "degrees_north", "standard_name": "latitude", "long_name": "latitude"},
    "lon": {"units": "degrees_east", "standard_name": "longitude", "long_name": "longitude"},
    "time": {"standard_name": "forecast_reference_time", "long_name": "initial time"},
    "lead_time": {"standard_name": "forecast_period", "long_name": "lead time"},
    "ensemble": {"standard_name": "realization", "long_name": "ensemble member"},
}

# Zarr's default, with a checksum: a file that a lost node left half written is recognized.
_CODEC = ZstdCodec(level=0, checksum=True)


@dataclass(frozen=True)
class ArraySchema:
    """One array of a store.

    Parameters
    ----------
    diagnostic : str
        Whose result or completeness mark it is.
    dims : tuple[str, ...]
        Names of its dimensions.
    shape, chunks : tuple[int, ...]
        Its size, and that of a chunk.
    shards : tuple[int, ...] | None
        Size of a file, if it holds several chunks.
    dtype : str
        ``"float32"``, or ``"bool"`` of a mark.
    attributes : Mapping[str, str]
        Of the array; they decide no values, so that they are not compared.
    """

    diagnostic: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Schema:
    """What a store holds.

    Parameters
    ----------
    coords : xr.Dataset
        Its coordinates, without data.
    arrays : Mapping[str, ArraySchema]
        Its arrays, by name.
    """

    coords: xr.Dataset
    arrays: Mapping[str, ArraySchema]


def plan_schema(
    axes: Coords,
    diagnostics: Mapping[str, Coords],
    leads: int = 1,
    attributes: Mapping[str, Mapping[str, str]] | None = None,
) -> Schema:
    """Plan which arrays a store of these results holds.

    Parameters
    ----------
    axes : Coords
        The leading dimensions: (ensemble,) time, lead_time.
    diagnostics : Mapping[str, Coords]
        For each diagnostic its output coords, ``variable`` and grid among them.
    leads : int, optional
        Lead times in one file, by default 1: one chunk, one file.
    attributes : Mapping[str, Mapping[str, str]] | None, optional
        ``units`` and ``long_name`` of variables, by default none.

    Returns
    -------
    Schema
        The plan.
    """
    attributes = attributes or {}
    coords = xr.Dataset(
        coords={key: (key, values, _COORD_ATTRIBUTES[key]) for key, values in axes.items()}
    )
    dims: dict[str, list[str]] = {}
    for name, own in diagnostics.items():
        grid = OrderedDict((k, v) for k, v in own.items() if k not in (*axes, "variable"))
        coords, dims[name] = _add_grid(coords, name, grid)
    ones = [1] * len(axes)
    arrays: dict[str, ArraySchema] = {}
    for name, own in diagnostics.items():
        size = tuple(coords.sizes[dim] for dim in (*axes, *dims[name]))
        leading, grid_shape = size[: len(axes)], size[len(axes) :]
        file = (*ones[:-1], leads)
        for variable in map(str, own["variable"]):
            arrays[variable] = ArraySchema(
                name,
                (*axes, *dims[name]),
                size,
                (*ones, *grid_shape),
                (*file, *grid_shape) if leads > 1 else None,
                "float32",
                {"diagnostic": name, **attributes.get(variable, {})},
            )
        about = {"long_name": f"whether this step of {name} is complete"}
        arrays[mark(name)] = ArraySchema(name, (*axes,), leading, file, None, "bool", about)
    return Schema(coords, arrays)


def _add_grid(coords: xr.Dataset, name: str, grid: Coords) -> tuple[xr.Dataset, list[str]]:
    """Add a diagnostic's grid, under names of its own where another one's is different."""
    from earth2studio.utils.coords import convert_multidim_to_singledim

    flat, mapping = convert_multidim_to_singledim(grid)
    arrays = {key: ([key], values) for key, values in flat.items()}
    arrays.update({key: (list(own), grid[key]) for key, own in mapping.items()})
    taken = any(
        key in coords.coords
        and not (list(coords[key].dims) == own and _same(coords[key].values, values))
        for key, (own, values) in arrays.items()
    )
    # All dimensions of this grid are renamed together.
    names = {key: f"{key}_{name}" if taken else key for key in arrays}
    for key, (own, values) in arrays.items():
        dims = [names[dim] for dim in own]
        attributes = _COORD_ATTRIBUTES.get(key, {})
        coords = coords.assign_coords({names[key]: (dims, values, attributes)})
    return coords, [names[key] for key in flat]


def create(destination: Destination, schema: Schema, attributes: Mapping[str, Any]) -> None:
    """Create a store's metadata in an empty place, with nothing complete.

    Parameters
    ----------
    destination : Destination
        The place.
    schema : Schema
        What it shall hold.
    attributes : Mapping[str, Any]
        Of the store.
    """
    store = destination.open()
    encoding = {
        "time": {"units": "seconds since 1970-01-01", "dtype": "int64"},
        "lead_time": {"units": "seconds", "dtype": "int64"},
    }
    with _quiet():
        schema.coords.to_zarr(store, mode="a", zarr_format=3, consolidated=False, encoding=encoding)
        group = zarr.open_group(store, mode="r+", use_consolidated=False)
        for name, array in schema.arrays.items():
            group.create_array(
                name,
                shape=array.shape,
                chunks=array.chunks,
                shards=array.shards,
                dtype=array.dtype,
                compressors=_CODEC,
                fill_value=False if array.dtype == "bool" else np.nan,
                dimension_names=array.dims,
                attributes=dict(array.attributes),
            )
    _commit(destination, schema, attributes)


def settle(destination: Destination, schema: Schema, attributes: Mapping[str, Any]) -> None:
    """Give a store that holds the same, or fewer lead times, the size of a schema.

    What was there stays. A run that is killed meanwhile leaves the store as it was to whoever
    opens it, and the next run settles it again.

    Parameters
    ----------
    destination : Destination
        The store, without :func:`mismatches`.
    schema : Schema
        What it shall hold.
    attributes : Mapping[str, Any]
        Attributes of the store that change.
    """
    store = destination.open()
    with _quiet():
        group = zarr.open_group(store, mode="r+", use_consolidated=False)
        there = zarr.open_group(store, mode="r")
    lead_axis = next(iter(schema.arrays.values())).dims.index("lead_time")
    for name in [name for name, array in schema.arrays.items() if array.dtype == "bool"]:
        own = [
            v for v, a in schema.arrays.items() if a.diagnostic == schema.arrays[name].diagnostic
        ]
        short = min(there[v].shape[lead_axis] for v in own)
        if short < there[name].shape[lead_axis]:  # earlier versions could leave such a store
            where = (*[slice(None)] * lead_axis, slice(short, None))
            group[name][where] = False
    for name, array in schema.arrays.items():
        if group[name].shape != array.shape:
            group[name].resize(array.shape)
    leads = (schema.coords["lead_time"].values / np.timedelta64(1, "s")).astype(np.int64)
    if group["lead_time"].shape != leads.shape:
        group["lead_time"].resize(leads.shape)
    wrong = np.flatnonzero(group["lead_time"][:] != leads)
    if wrong.size:
        group["lead_time"][wrong[0] :] = leads[wrong[0] :]
    grown = any(there[name].shape != array.shape for name, array in schema.arrays.items())
    grown = grown or there["lead_time"].shape != leads.shape
    if grown or attributes or there.metadata.consolidated_metadata is None:
        _commit(destination, schema, attributes)


def _commit(destination: Destination, schema: Schema, attributes: Mapping[str, Any]) -> None:
    """Replace the root metadata, and with it what a reader sees, in one write."""
    root = json.loads(destination.get("zarr.json"))
    members = (root.get("consolidated_metadata") or {}).get("metadata") or {}
    names = dict.fromkeys([*members, *map(str, schema.coords.coords), *schema.arrays])
    root["attributes"] = {**root.get("attributes", {}), **attributes}
    root["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {name: json.loads(destination.get(f"{name}/zarr.json")) for name in names},
    }
    destination.put("zarr.json", json.dumps(root, indent=2).encode())


def leads_in_file(store: Store, diagnostics: Mapping[str, Coords]) -> int:
    """Lead times in one file of an existing store; 1 if it has no such diagnostics."""
    there = zarr.open_group(store, mode="r")
    names = [mark(name) for name in diagnostics if mark(name) in there]
    return int(there[names[0]].chunks[-1]) if names else 1


def mismatches(store: Store, schema: Schema) -> list[str]:
    """Compare all that a store holds with what it shall hold.

    Parameters
    ----------
    store : zarr.abc.store.Store
        An existing store.
    schema : Schema
        What a run needs; it may have more lead times.

    Returns
    -------
    list[str]
        What differs, each in one line that says what is there and what is needed; empty if the
        run can continue the store.
    """
    there = zarr.open_group(store, mode="r")
    with _quiet():
        arrays = {name: array for name, array in there.arrays() if not name.startswith(".")}
    results = {
        name
        for name, array in arrays.items()
        if "diagnostic" in array.attrs or name.endswith(mark(""))
    }
    problems = []
    with _quiet(), xr.open_zarr(store, drop_variables=[*arrays.keys() & results]) as stored:
        for key, wanted in schema.coords.coords.items():
            has = stored[key].values if key in stored.coords else None
            mine = wanted.values
            if has is not None and key == "lead_time":
                mine = mine[: len(has)]
            if has is None or not _same(has, mine):
                said = "nothing" if has is None else _words(has)
                problems.append(f"{key}: the store has {said}, this run {_words(wanted.values)}")
    only_there, only_here = results - set(schema.arrays), set(schema.arrays) - results
    if only_there or only_here:
        differ = [
            f"{who} has {', '.join(sorted(lone))}, which {other} has not"
            for who, lone, other in (
                ("the store", only_there, "this run"),
                ("this run", only_here, "the store"),
            )
            if lone
        ]
        problems.append(f"variables: {' and '.join(differ)}")
    for name in sorted(results & set(schema.arrays)):
        array, wanted_array = arrays[name], schema.arrays[name]
        for what, was, now in _layout(array, wanted_array):
            problems.append(f"{what} of {name}: the store has {was}, this run {now}")
    return problems


def _layout(array: zarr.Array, wanted: ArraySchema) -> Iterator[tuple[str, Any, Any]]:
    """Compare the layout of an array, but for lead times that it lacks."""
    dims = tuple(array.metadata.dimension_names or ())
    pairs: list[tuple[str, Any, Any]] = [
        ("dimensions", dims, wanted.dims),
        ("dtype", str(array.dtype), wanted.dtype),
        ("chunks", array.chunks, wanted.chunks),
        ("files", array.shards, wanted.shards),
    ]
    if wanted.dtype != "bool":
        pairs.append(("diagnostic", array.attrs.get("diagnostic"), wanted.diagnostic))
    if dims == wanted.dims:
        has = dict(zip(dims, array.shape, strict=True))
        needs = dict(zip(dims, wanted.shape, strict=True))
        if has["lead_time"] < needs["lead_time"]:
            has["lead_time"] = needs["lead_time"]
        pairs.append(("sizes", has, needs))
    yield from ((what, was, now) for what, was, now in pairs if was != now)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two coordinates are equal, NaN being equal to NaN."""
    floats = a.dtype.kind == b.dtype.kind == "f"
    return bool(np.array_equal(a, b, equal_nan=floats))


def _words(values: np.ndarray) -> str:
    """Describe a coordinate in one line."""
    flat = values.ravel()
    if np.issubdtype(values.dtype, np.timedelta64):
        said = [f"{v / np.timedelta64(1, 'h'):g} h" for v in flat]
    elif np.issubdtype(values.dtype, np.datetime64):
        said = [str(np.datetime_as_string(v, "m")) for v in flat]
    elif values.dtype.kind == "f":
        said = [f"{v:.9g}" for v in flat]
    else:
        said = [str(v) for v in flat]
    if len(said) <= 4:
        return ", ".join(said) or "none"
    size = " x ".join(map(str, values.shape))
    return f"{size} values: {said[0]}, {said[1]}, ..., {said[-1]}"


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
    if not name or "/" in name or name.startswith((".", "__")) or name == "zarr.json":
        return f"{name!r} cannot be the name of an array in a Zarr store"
    return ""


def step_bytes(coords: Coords, leading: int) -> int:
    """Bytes of one result with these coords, the first ``leading`` dimensions being of one each."""
    return 4 * int(np.prod(shape(coords)[leading:]))


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        warnings.filterwarnings("ignore", message="Object at .distinf")
        # Earlier versions left this for a moment.
        warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated")
        yield
