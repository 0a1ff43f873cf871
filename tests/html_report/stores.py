"""Stores as distinf writes them, made of given fields."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

_STEPS = ("ensemble", "time", "lead_time")


def write_store(
    path: Path,
    fields: Mapping[str, Any],
    grid: Mapping[str, Any],
    dims: Sequence[str],
    hours: float = 6.0,
    missing: int = 0,
) -> Path:
    """Write fields [(ensemble,) time, lead_time, *dims] of one diagnostic, ``model``.

    Its last ``missing`` tasks are marked as not complete.
    """
    first = next(iter(fields.values()))
    leading = _STEPS[-(first.ndim - len(dims)) :]
    sizes = dict(zip(leading, first.shape, strict=False))
    leads = np.arange(sizes["lead_time"]) * hours * 3600
    coords = {
        "time": np.datetime64("2000-01-01", "ns")
        + np.arange(sizes["time"]) * np.timedelta64(1, "D"),
        "lead_time": leads.astype("timedelta64[s]").astype("timedelta64[ns]"),
        **grid,
    }
    if "ensemble" in sizes:
        coords["ensemble"] = np.arange(sizes["ensemble"])
    marks = np.ones(tuple(sizes.values()), bool)
    marks.flat[marks.size - missing :] = False
    about = {"diagnostic": "model", "units": "K"}
    arrays = {
        name: ((*leading, *dims), values.astype(np.float32), about | {"long_name": f"long {name}"})
        for name, values in fields.items()
    }
    store = xr.Dataset({**arrays, "model_complete": (leading, marks)}, coords)
    store.attrs = {
        "history": "2026-01-31T00:00:00+00:00 created by distinf",
        "config": json.dumps({"parameters": {"nsteps": 4}}),
        "versions": json.dumps({"torch": "2.14"}),
    }
    chunk = {name: 1 for name in leading}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store.chunk(chunk).to_zarr(path, zarr_format=3)
    return path
