"""The forecast store's schema: which arrays and coordinates a store holds, and how it grows.

`plan_schema` plans what a run needs from its coordinates alone. A new store is created from the
plan, an existing one is compared with it before anything is changed. Each change ends with one
write of the root metadata, which holds the metadata of all arrays (consolidated): until then a
reader sees the store as it was.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec

from distinf.coords import Coords
from distinf.errors import ConfigError
from distinf.store.contents import Destination

if TYPE_CHECKING:
    import xarray as xr  # imported when a store is planned: a wrong path is refused sooner

_COORD_ATTRIBUTES = {
    "lat": {"units": "degrees_north", "standard_name": "latitude", "long_name": "latitude"},
    "lon": {"units": "degrees_east", "standard_name": "longitude", "long_name": "longitude"},
    "time": {"standard_name": "forecast_reference_time", "long_name": "initial time"},
    "lead_time": {"standard_name": "forecast_period", "long_name": "lead time"},
    "ensemble": {"standard_name": "realization", "long_name": "ensemble member"},
}

# Zarr's default, with a checksum: a file that a lost node left half written is recognized.
_CODEC = ZstdCodec(level=0, checksum=True)


@dataclass(frozen=True, eq=False)
class StoreLayout:
    """Which results a store holds.

    Parameters
    ----------
    times : np.ndarray
        Initial times, datetime64[ns].
    lead_times : np.ndarray
        Lead times, timedelta64[ns].
    diagnostics : Mapping[str, Coords]
        For each diagnostic its output coords, ``variable`` and grid among them.
    attributes : Mapping[str, Mapping[str, str]], optional
        ``units`` and ``long_name`` of variables, by default none.
    ensemble : np.ndarray | None, optional
        Numbers of the members, by default None: no dimension ``ensemble``.
    inside : str, optional
        Folder in the store that holds the arrays, with a slash at its end, by default none.
    """

    times: np.ndarray
    lead_times: np.ndarray
    diagnostics: Mapping[str, Coords]
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ensemble: np.ndarray | None = None
    inside: str = ""

    @property
    def axes(self) -> Coords:
        """The leading dimensions: (ensemble,) time, lead_time."""
        members = {} if self.ensemble is None else {"ensemble": self.ensemble}
        return OrderedDict(**members, time=self.times, lead_time=self.lead_times)

    @property
    def nbytes(self) -> int:
        """Bytes of all results, not compressed."""
        steps = int(np.prod([len(values) for values in self.axes.values()]))
        grids = [shape(coords)[len(self.axes) :] for coords in self.diagnostics.values()]
        return 4 * steps * sum(int(np.prod(grid)) for grid in grids)


@dataclass(frozen=True)
class ArraySchema:
    """One array of a store; its attributes do not affect the values and are not compared."""

    diagnostic: str  # whose results or marks it holds
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None  # size of a file, if it holds several chunks
    dtype: str  # "float32", or "bool" of marks
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Schema:
    """What a store holds: its coordinates, without data, and its arrays by name."""

    coords: xr.Dataset
    arrays: Mapping[str, ArraySchema]


def plan_schema(layout: StoreLayout, leads: int = 1, base: Schema | None = None) -> Schema:
    """Plan the arrays of a store, with so many lead times in one file (1: one chunk, one file).

    They are added to those of ``base``.
    """
    import xarray as xr

    axes, diagnostics = layout.axes, layout.diagnostics
    coords = (base.coords if base is not None else xr.Dataset()).assign_coords(
        {key: (key, values, _COORD_ATTRIBUTES[key]) for key, values in axes.items()}
    )
    ones = [1] * len(axes)
    file = (*ones[:-1], leads)
    arrays = dict(base.arrays) if base is not None else {}
    for name, own in diagnostics.items():
        grid = OrderedDict((k, v) for k, v in own.items() if k not in (*axes, "variable"))
        coords, grid_dims = _add_grid(coords, name.removesuffix(statistics_of("")), grid)
        dims = (*axes, *grid_dims)
        size = tuple(coords.sizes[dim] for dim in dims)
        leading, grid_shape = size[: len(axes)], size[len(axes) :]
        for variable in map(str, own["variable"]):
            arrays[variable] = ArraySchema(
                name,
                dims,
                size,
                (*ones, *grid_shape),
                (*file, *grid_shape) if leads > 1 else None,
                "float32",
                {"diagnostic": name, **layout.attributes.get(variable, {})},
            )
        about = {"long_name": f"whether this step of {name} is complete"}
        arrays[marks_array(name)] = ArraySchema(name, (*axes,), leading, file, None, "bool", about)
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
    """Create a store's metadata at an empty destination, with nothing complete."""
    store = destination.open()
    encoding = {
        "time": {"units": "seconds since 1970-01-01", "dtype": "int64"},
        "lead_time": {"units": "seconds", "dtype": "int64"},
    }
    with _quiet():
        schema.coords.to_zarr(store, mode="a", zarr_format=3, consolidated=False, encoding=encoding)
        group = zarr.open_group(store, mode="r+", use_consolidated=False)
        for name, array in schema.arrays.items():
            _create_array(group, name, array)
    _commit(destination, schema, attributes)


def _create_array(group: zarr.Group, name: str, array: ArraySchema) -> None:
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


def hide(destination: Destination, layout: StoreLayout, leads: int) -> zarr.Group:
    """Create or resize the arrays of a layout in a folder that readers of the store do not see."""
    with _quiet():
        group = zarr.open_group(
            destination.open(), mode="a", path=layout.inside.rstrip("/"), use_consolidated=False
        )
        for name, array in plan_schema(layout, leads).arrays.items():
            if name not in group:
                _create_array(group, name, array)
            elif group[name].shape != array.shape:
                group[name].resize(array.shape)
    return group


def open_layout(destination: Destination, layout: StoreLayout) -> zarr.Group:
    """Open the group that holds the arrays of a layout."""
    path = layout.inside.rstrip("/")
    return zarr.open_group(destination.open(), mode="r+", path=path, use_consolidated=False)


def grow(destination: Destination, schema: Schema, attributes: Mapping[str, Any]) -> None:
    """Resize a store without `mismatches` to the lead times of a schema; change its attributes.

    Results stay. If a run is killed in between, readers see the store as it was, and the next run
    resizes it again.
    """
    store = destination.open()
    with _quiet():
        group = zarr.open_group(store, mode="r+", use_consolidated=False)
        there = zarr.open_group(store, mode="r")
    _unmark_missing(group, there, schema)
    leads = (schema.coords["lead_time"].values / np.timedelta64(1, "s")).astype(np.int64)
    shapes = {name: array.shape for name, array in schema.arrays.items()}
    shapes["lead_time"] = leads.shape
    for name, size in shapes.items():
        if group[name].shape != size:
            group[name].resize(size)
    wrong = np.flatnonzero(group["lead_time"][:] != leads)
    if wrong.size:
        group["lead_time"][wrong[0] :] = leads[wrong[0] :]
    grown = any(there[name].shape != size for name, size in shapes.items())
    if grown or attributes or there.metadata.consolidated_metadata is None:
        _commit(destination, schema, attributes)


def _unmark_missing(group: zarr.Group, there: zarr.Group, schema: Schema) -> None:
    """Unmark lead times that the arrays of a diagnostic lack: earlier versions could leave such."""
    for name, marks in schema.arrays.items():
        lead_axis = marks.dims.index("lead_time")
        if marks.dtype == "bool":
            own = [v for v, array in schema.arrays.items() if array.diagnostic == marks.diagnostic]
            short = min(there[v].shape[lead_axis] for v in own)
            if short < there[name].shape[lead_axis]:
                group[name][(*[slice(None)] * lead_axis, slice(short, None))] = False


def _commit(destination: Destination, schema: Schema, attributes: Mapping[str, Any]) -> None:
    """Replace the root metadata, which readers see, in one write."""
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
    names = [name for name in map(marks_array, diagnostics) if name in there]
    return int(there[names[0]].chunks[-1]) if names else 1


def mismatches(store: Store, schema: Schema) -> list[str]:
    """Compare what a store holds with what a run needs, which may have more lead times.

    Returns a line for each difference; none if the run can continue the store.
    """
    import xarray as xr

    there = zarr.open_group(store, mode="r")
    with _quiet():
        arrays = {name: array for name, array in there.arrays() if not name.startswith(".")}
    results = {
        name
        for name, array in arrays.items()
        if "diagnostic" in array.attrs or name.endswith(marks_array(""))
    }
    problems = []
    with _quiet(), xr.open_zarr(store, drop_variables=[*arrays.keys() & results]) as stored:
        for key, wanted in schema.coords.coords.items():
            has = stored[key].values if key in stored.coords else None
            mine = wanted.values
            if has is not None and key == "lead_time":
                mine = mine[: len(has)]
            if has is None or not _same(has, mine):
                found = "nothing" if has is None else _words(has)
                problems.append(f"{key}: the store has {found}, this run {_words(wanted.values)}")
    planned = set(schema.arrays)
    only = [
        f"{one} has {', '.join(sorted(names))}, which {other} has not"
        for one, names, other in (
            ("the store", results - planned, "this run"),
            ("this run", planned - results, "the store"),
        )
        if names
    ]
    if only:
        problems.append(f"variables: {' and '.join(only)}")
    for name in sorted(results & planned):
        array, wanted_array = arrays[name], schema.arrays[name]
        for what, was, now in _layout(array, wanted_array):
            problems.append(f"{what} of {name}: the store has {was}, this run {now}")
    return problems


def _layout(array: zarr.Array, wanted: ArraySchema) -> Iterator[tuple[str, Any, Any]]:
    """Compare the layout of an array, except lead times that it lacks."""
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
        words = [f"{v / np.timedelta64(1, 'h'):g} h" for v in flat]
    elif np.issubdtype(values.dtype, np.datetime64):
        words = [str(np.datetime_as_string(v, "m")) for v in flat]
    elif values.dtype.kind == "f":
        words = [f"{v:.9g}" for v in flat]
    else:
        words = [str(v) for v in flat]
    if len(words) <= 4:
        return ", ".join(words) or "none"
    size = " x ".join(map(str, values.shape))
    return f"{size} values: {words[0]}, {words[1]}, ..., {words[-1]}"


def vocabulary(variable: str) -> dict[str, str]:
    """``units`` and ``long_name`` of a variable of Earth2Studio's vocabulary; empty if unknown."""
    from earth2studio.lexicon.base import E2STUDIO_VOCAB

    described = re.fullmatch(r"(.*) \(([^()]*)\)", E2STUDIO_VOCAB.get(variable, ""))
    return {"long_name": described[1], "units": described[2]} if described else {}


def marks_array(diagnostic: str) -> str:
    """Name of the array that says which steps of a diagnostic are complete."""
    return f"{diagnostic}_complete"


def statistics_of(diagnostic: str) -> str:
    """Name under which the statistics of a diagnostic's members are stored and marked."""
    return f"{diagnostic}_statistics"


def crps_of(diagnostic: str) -> str:
    """Name under which the CRPS of a diagnostic's members is stored and marked."""
    return f"{diagnostic}_crps"


def shape(coords: Coords) -> tuple[int, ...]:
    """Shape of a tensor with these coords; an n-dimensional grid appears n times in them."""
    sizes, axis = [], 0
    for values in coords.values():
        sizes.append(values.shape[axis])
        axis = (axis + 1) % values.ndim
    return tuple(sizes)


def check_names(renames: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse names of diagnostics, and new names of their variables, that the store uses itself.

    Raises `ConfigError`.
    """
    for name, rename in renames.items():
        if why := _reserved(name):
            raise ConfigError(f"diagnostic.{name}: {why}; give the diagnostic another name")
        for old, new in rename.items():
            if why := _reserved(new):
                raise ConfigError(
                    f"diagnostic.{name}.rename={{{old}: {new}}}: {why}; choose another name"
                )


def check_clashes(diagnostics: Mapping[str, Coords]) -> None:
    """Refuse diagnostics with the same variable, or with a name that the store uses itself.

    Raises `ConfigError`.
    """
    from earth2studio.utils.coords import convert_multidim_to_singledim

    coordinates: set[str] = set()
    for name, coords in diagnostics.items():
        grid = OrderedDict((k, v) for k, v in coords.items() if k != "variable")
        flat, own = convert_multidim_to_singledim(grid)
        coordinates.update(found for key in (*flat, *own) for found in (key, f"{key}_{name}"))
    seen: dict[str, str] = {}
    for name, coords in diagnostics.items():
        if why := _reserved(name, coordinates):
            raise ConfigError(f"diagnostic.{name}: {why}; give the diagnostic another name")
        for variable in map(str, coords["variable"]):
            if why := _reserved(variable, coordinates):
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


def _reserved(name: str, coordinates: Collection[str] = ()) -> str:
    """Why the store uses a name itself, or cannot use it; empty if it is free."""
    if name in _COORD_ATTRIBUTES or name == "variable" or name in coordinates:
        return f"{name} is a coordinate of the store"
    if name.endswith(statistics_of("")):
        return f"names that end in {statistics_of('')} are those of statistics over members"
    if name.endswith(marks_array("")):
        return f"names that end in {marks_array('')} say which steps of a diagnostic are complete"
    if not name or "/" in name or name.startswith((".", "__")) or name == "zarr.json":
        return f"{name!r} cannot be the name of an array in a Zarr store"
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        warnings.filterwarnings("ignore", message="Object at .distinf")
        # Earlier versions left this for a moment.
        warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated")
        yield
