"""Pairs of input and target in stores: which there are, who reads which, and reading one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.utils.data import Dataset, DistributedSampler

from distinf.errors import ConfigError
from distinf.training.settings import TrainingRun, names_of

_STEP = ("ensemble", "time", "lead_time")
_GRID = ("lat", "lon")
_MEGABYTE = 10**6


@dataclass(frozen=True)
class Pair:
    """Where one pair lies: the number of its store, and its coordinates by their dims."""

    store: int
    step: dict[str, Any]

    @property
    def valid(self) -> np.datetime64:
        """Time at which its state is valid."""
        lead = self.step.get("lead_time", np.timedelta64(0, "ns"))
        return np.datetime64(self.step["time"]) + np.timedelta64(lead)

    def __str__(self) -> str:
        return " ".join(f"{dim} {value}" for dim, value in self.step.items())


class Pairs(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pairs of a state and its targets, of all steps of stores; each is read when it is asked for.

    Parameters
    ----------
    run : TrainingRun
        The training.

    Attributes
    ----------
    all : list[Pair]
        Where they lie, in the order of the stores, members, times and lead times.
    lat, lon : np.ndarray
        The grid in degrees, float64.
    attributes : dict[str, dict[str, str]]
        ``units`` and ``long_name`` of the targets.

    Raises
    ------
    ConfigError
        If a store cannot be read, lacks a variable, or is not complete, or grids differ.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._data, self._memory = run.data, run.training.memory * _MEGABYTE
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.all: list[Pair] = []
        self._stores: list[tuple[list[xr.DataArray], list[xr.DataArray]]] = []
        grids: dict[str, np.ndarray] = {}
        targets = run.data.target_path or run.data.path
        for number, (path, target_path) in enumerate(zip(run.data.path, targets, strict=True)):
            x = _variables(path, run.data.inputs, "data.inputs")
            y = _variables(target_path, run.data.target, "data.target")
            for array in (*x, *y):
                for dim in _GRID:
                    values = np.asarray(array[dim].values, dtype=np.float64)
                    if not np.array_equal(grids.setdefault(dim, values), values):
                        raise ConfigError(
                            f"data.path={path}: {array.name} lies on another {dim} than "
                            f"{names_of(run.data.inputs)}; inputs and targets share one grid"
                        )
            x, y = ([_without(a, x[0], path) for a in arrays] for arrays in (x, y))
            self.all += [Pair(number, step) for step in _steps([*x, *y], target_path)]
            self._stores.append((x, y))
        self.lat, self.lon = grids["lat"], grids["lon"]
        self.attributes = {
            str(y.name): {k: str(y.attrs[k]) for k in ("units", "long_name") if k in y.attrs}
            for y in self._stores[0][1]
        }

    @property
    def times(self) -> np.ndarray:
        """Initial time of each pair, datetime64[ns]."""
        return np.array([pair.step["time"] for pair in self.all], dtype="datetime64[ns]")

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the inputs [input, lat, lon] and the targets [target, lat, lon], float32."""
        if index in self._kept:
            return self._kept[index]
        pair = self.all[index]
        x, y = (_read(arrays, pair) for arrays in self._stores[pair.store])
        if (len(self._kept) + 1) * (x.nbytes + y.nbytes) <= self._memory:
            self._kept[index] = x, y
        return x, y


def _variables(path: str, names: Sequence[str], where: str) -> list[xr.DataArray]:
    """Open variables of a store or a file; their values are read when they are selected."""
    is_store = any((Path(path) / name).exists() for name in ("zarr.json", ".zgroup"))
    try:
        data = xr.open_zarr(path, chunks=None) if is_store or "://" in path else _file(path)
    except Exception as error:
        raise ConfigError(f"data.path={path} cannot be read: {error}") from None
    if missing := [name for name in names if name not in data.data_vars]:
        there = names_of([str(name) for name in data.data_vars])
        raise ConfigError(f"{where}: {path} does not have {names_of(missing)}; it has {there}")
    arrays = [data[name] for name in names]
    for array in arrays:
        if array.dims[-2:] != _GRID or not set(array.dims[:-2]) <= set(_STEP):
            raise ConfigError(
                f"{where}={array.name}: its dims are {names_of([str(d) for d in array.dims])}; "
                f"they must be of {names_of([*_STEP, *_GRID])}"
            )
        marks = f"{array.attrs.get('diagnostic')}_complete"
        if marks in data and not data[marks].values.all():
            raise ConfigError(
                f"{where}={array.name} is not complete in {path}; its run can be continued by "
                "output.mode=resume"
            )
    return arrays


def _without(array: xr.DataArray, first: xr.DataArray, path: str) -> xr.DataArray:
    """Leave out dimensions of one step that the first input does not have."""
    for dim in [dim for dim in _STEP if dim in array.dims and dim not in first.dims]:
        if array.sizes[dim] > 1:
            raise ConfigError(
                f"data.path={path}: {array.name} has {array.sizes[dim]} of {dim}, a dimension that "
                f"{first.name} does not have"
            )
        array = array.isel({dim: 0}, drop=True)
    return array


def _file(path: str) -> xr.Dataset:
    if not Path(path).exists():
        raise ConfigError("it does not exist")
    return xr.open_dataset(path)


def _steps(arrays: Sequence[xr.DataArray], path: str) -> list[dict[str, Any]]:
    """Return the coordinates of the steps of the first array, which all others must have."""
    first = arrays[0]
    dims = [dim for dim in _STEP if dim in first.dims]
    if "time" not in dims:
        raise ConfigError(f"data.inputs={first.name} has no dimension time")
    for array in arrays:
        for dim in dims:
            if dim not in array.dims or not set(first[dim].values) <= set(array[dim].values):
                raise ConfigError(
                    f"data.path={path}: {array.name} does not have each {dim} of {first.name}"
                )
    values = (first[dim].values for dim in dims)
    return [dict(zip(dims, step, strict=True)) for step in itertools.product(*values)]


def _read(arrays: Sequence[xr.DataArray], pair: Pair) -> torch.Tensor:
    fields = np.stack([array.sel(pair.step).values for array in arrays]).astype(np.float32)
    if not np.isfinite(fields).all():
        names = names_of([str(array.name) for array in arrays])
        raise ConfigError(f"{names} at {pair}: NaN or infinite values cannot be learnt")
    return torch.from_numpy(fields)


def split(times: np.ndarray, held_out: np.ndarray) -> tuple[list[int], list[int]]:
    """Split pairs by their initial times; pairs of one time never lie in both parts.

    Parameters
    ----------
    times : np.ndarray
        Initial time of each pair, datetime64[ns].
    held_out : np.ndarray
        Initial times for validation, datetime64[ns].

    Returns
    -------
    training, validation : list[int]
        Numbers of pairs, ascending.

    Raises
    ------
    ConfigError
        If a time is not there, or no pair is left to train on.
    """
    if (unknown := np.setdiff1d(held_out, times)).size:
        there = [np.datetime_as_string(time, "m") for time in np.unique(times)]
        raise ConfigError(
            f"data.held_out={np.datetime_as_string(unknown[0], 'm')}: the data does not have this "
            f"initial time; it has {names_of(there)}"
        )
    out = np.isin(times, held_out)
    if out.all():
        raise ConfigError("data.held_out holds out every initial time; leave some to train on")
    return np.flatnonzero(~out).tolist(), np.flatnonzero(out).tolist()


def share(indices: Sequence[int], rank: int, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the pairs that a rank trains on, the same in each epoch, and those of them that count.

    Parameters
    ----------
    indices : Sequence[int]
        Pairs of all ranks.
    rank, size : int
        The rank, and how many there are.
    seed : int
        Seed of the order in which they are dealt out.

    Returns
    -------
    pairs, own : list[int]
        ``pairs`` are equally many on each rank, since all ranks step together: some ranks repeat a
        pair of another one. ``own`` are without these, so that each pair is in one rank's ``own``.
    """
    all_pairs: Any = list(indices)
    dealt: Any = DistributedSampler(all_pairs, size, rank, shuffle=True, seed=seed)
    pairs = [indices[i] for i in dealt]
    return pairs, pairs[: len(range(rank, len(indices), size))]


def check_pairs(run: TrainingRun, ranks: int | None = None) -> Pairs:
    """Open the pairs, and check that there are enough.

    Parameters
    ----------
    run : TrainingRun
        The training.
    ranks : int | None, optional
        Number of ranks, by default None: not known yet.

    Raises
    ------
    ConfigError
        As `Pairs` and `split`, or if there are fewer pairs than ranks.
    """
    pairs = Pairs(run)
    training, _ = split(pairs.times, run.held_out)
    if ranks is not None and len(training) < ranks:
        raise ConfigError(f"there are {len(training)} pairs to train on for {ranks} ranks")
    return pairs
