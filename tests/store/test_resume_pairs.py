"""Pairs of runs on one store: the second continues the first, or is refused and touches nothing.

The reference is a run that was never interrupted. Everything is real but the models: a value is a
function of its variable, time, lead time, member and place.
"""

import shutil
import tempfile
import zlib
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from distinf.errors import ConfigError, StoreError
from distinf.options import Output
from distinf.store import ForecastStore, Provenance, StoreLayout
from tests.store.test_forecast_store import is_complete, look
from tests.store.test_output_modes import snapshot

TIMES = [np.datetime64(day, "ns") for day in ("2023-06-01", "2023-06-02")]
HOUR = np.timedelta64(1, "h").astype("timedelta64[ns]")


@st.composite
def runs(draw):
    """Draw what a config decides of a run's store."""
    names = draw(st.sampled_from([("rain",), ("rain", "wind"), ("wind", "rain")]))
    possible = {"rain": ("tp", "sf"), "wind": ("u", "v")}
    diagnostics = {}
    for name in names:
        variables = draw(
            st.lists(st.sampled_from(possible[name]), min_size=1, max_size=2, unique=True)
        )
        diagnostics[name] = {
            "variables": tuple(variables),
            "rows": draw(st.integers(1, 2)),
            "west": draw(st.sampled_from([0.0, 1.0, 2.0, float("nan")])),
            "two": draw(st.sampled_from([False, False, True])),  # dimensions of its coordinates
        }
    return {
        "diagnostics": diagnostics,
        "times": draw(st.sampled_from([(0,), (0, 1), (1, 0)])),
        "nsteps": draw(st.integers(1, 4)),
        "every": draw(st.sampled_from([1, 1, 2])),
        "members": draw(st.sampled_from([None, None, 1, 2])),
        "shards": draw(st.sampled_from([None, None, 2, 3])),
        "dtype": draw(st.sampled_from([torch.float32, torch.float32, torch.float64])),
    }


@st.composite
def pairs(draw):
    """Two runs that differ in a few things, in one thing of a diagnostic, or in nothing."""
    first, other = draw(runs()), draw(runs())
    second = dict(first)
    if draw(st.booleans()):
        for key in draw(st.sets(st.sampled_from(sorted(first)), max_size=2)):
            second[key] = other[key]
    else:
        name = draw(st.sampled_from(list(first["diagnostics"])))
        own = dict(first["diagnostics"][name])
        key = draw(st.sampled_from(["variables", "rows", "west", "west", "two"]))
        if key == "west":
            own["west"] = draw(st.sampled_from([0.0, 1.0, 2.0, float("nan")]))
        elif key == "rows":
            own["rows"] = 3 - own["rows"]
        elif key == "two":
            own["two"] = not own["two"]
        else:
            own["variables"] = own["variables"][::-1]
        second["diagnostics"] = {**first["diagnostics"], name: own}
    if draw(st.booleans()):
        second["nsteps"] = first["nsteps"] + draw(st.integers(0, 2))
    return first, second


def coords(settings):
    lat = np.arange(settings["rows"], dtype=float)
    lon = settings["west"] + np.arange(2.0)
    own = OrderedDict(variable=np.array(settings["variables"]))
    if settings["two"]:
        own["lat"], own["lon"] = np.meshgrid(lat, lon, indexing="ij")
    else:
        own["lat"], own["lon"] = lat, lon
    return own


def axes(run):
    leads = np.arange(0, run["nsteps"] + 1, run["every"]) * 6 * HOUR
    members = None if run["members"] is None else np.arange(run["members"])
    return np.array([TIMES[i] for i in run["times"]]), leads, members


def opened(path, run, mode):
    times, leads, members = axes(run)
    first = OrderedDict() if members is None else OrderedDict(ensemble=members[:1])
    grids = {
        name: OrderedDict(first, time=times[:1], lead_time=leads[:1], **coords(settings))
        for name, settings in run["diagnostics"].items()
    }
    # What the config of a run says of it; regions, names and members show in the coordinates.
    config = {
        "parameters": {"nsteps": run["nsteps"], "time": [int(i) for i in run["times"]]},
        "output": {"shards": run["shards"], "every": run["every"]},
        "diagnostic": {name: {"precision": str(run["dtype"])} for name in run["diagnostics"]},
    }
    output = Output(mode, shards=run["shards"], every=run["every"])
    layout = StoreLayout(times, leads, grids, ensemble=members)
    return ForecastStore(path, layout, output, Provenance(config))


def value(run, name, member, time, lead):
    """Make a result up: [(1,) 1, 1, variable, lat, lon], different in every place."""
    settings = run["diagnostics"][name]
    own = coords(settings)
    size = (len(own["variable"]), settings["rows"], 2)
    x = torch.empty(size, dtype=run["dtype"])
    for i, variable in enumerate(settings["variables"]):
        for row in range(settings["rows"]):
            for column in range(2):
                place = (variable, member, str(time), int(lead), row, settings["west"] + column)
                x[i, row, column] = zlib.crc32(repr(place).encode()) / 7
    if settings["two"]:
        own["lat"], own["lon"] = coords(settings)["lat"], coords(settings)["lon"]
    step = OrderedDict() if member is None else OrderedDict(ensemble=np.array([member]))
    step.update(time=np.array([time]), lead_time=np.array([lead]))
    step.update(own)
    return x.to(torch.float32).reshape((1,) * (len(step) - 3) + size), step


def fill(store, run, share=1.0):
    """Compute what the store lacks, or only the beginning of it."""
    times, leads, members = axes(run)
    todo = [
        (name, member, time, lead)
        for time in times
        for member in ([None] if members is None else members)
        for lead in leads
        for name in run["diagnostics"]
    ]
    for name, member, time, lead in todo[: round(share * len(todo))]:
        if not is_complete(store, name, time, lead, member):
            future = Future()
            future.set_result(value(run, name, member, time, lead))
            store.write(name, future)


def contents(path):
    """All that a reader sees, as bytes, but for the history and the config."""
    there = look(path)
    return {
        str(name): (array.dims, str(array.dtype), array.attrs, array.values.tobytes())
        for name, array in there.variables.items()
    }


@pytest.mark.slow
@settings(max_examples=80)
@given(pairs(), st.sampled_from([0.0, 0.4, 1.0]))
def test_a_resumed_store_is_that_of_one_run_or_is_not_touched(pair, share):
    first, second = pair
    with tempfile.TemporaryDirectory() as folder:
        path, whole = Path(folder, "a.zarr"), Path(folder, "b.zarr")
        with opened(path, first, "create") as store:
            fill(store, first, share)
        before = snapshot(path)
        refusal = None
        try:
            with opened(path, second, "resume") as store:
                fill(store, second)
        except (StoreError, ConfigError) as error:
            refusal = str(error)
        if refusal is not None:
            event("refused")
            assert "\n" not in refusal
            assert first != second
            assert snapshot(path) == before
            return
        event("continued")
        with opened(whole, second, "create") as store:
            fill(store, second)
        assert contents(path) == contents(whole)


def test_the_pairs_tell_a_store_that_was_mixed(tmp_path):
    """That the comparison above can fail: a value from another place, a step that lacks."""
    run = {
        "diagnostics": {"rain": {"variables": ("tp",), "rows": 2, "west": 0.0, "two": False}},
        "times": (0,),
        "nsteps": 1,
        "every": 1,
        "members": None,
        "shards": None,
        "dtype": torch.float32,
    }
    with opened(tmp_path / "a.zarr", run, "create") as store:
        fill(store, run)
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    chunks = tmp_path / "b.zarr" / "tp" / "c" / "0"
    shutil.copy(chunks / "0" / "0" / "0", chunks / "1" / "0" / "0")
    assert contents(tmp_path / "a.zarr") != contents(tmp_path / "b.zarr")
