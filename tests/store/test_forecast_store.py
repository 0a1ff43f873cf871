"""The forecast store, as somebody sees it who opens it with xarray alone."""

import json
import subprocess
import sys
import threading
import warnings
from collections import OrderedDict
from concurrent.futures import Future

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from distinf.errors import ConfigError, StoreError, TaskError
from distinf.options import Output
from distinf.store import ForecastStore, Provenance, StoreLayout

TIMES = np.array(["2023-06-01", "2023-06-02"], dtype="datetime64[ns]")
LEADS = (np.arange(3) * np.timedelta64(6, "h")).astype("timedelta64[ns]")
ATTRIBUTES = {
    "tp": {"units": "m", "long_name": "total precipitation"},
    "gust": {"units": "m s-1", "long_name": "wind gust"},
}
CONFIG = {"parameters": {"nsteps": 2, "time": "2023-06-01"}, "runtime": {"nproc": 3}}


def grid(*variables, nlat=4, nlon=6):
    return OrderedDict(
        time=TIMES[:1],
        lead_time=LEADS[:1],
        variable=np.array(variables),
        lat=np.linspace(90, -90, nlat),
        lon=np.linspace(0, 300, nlon),
    )


def curvilinear(*variables):
    lat, lon = np.meshgrid(np.linspace(50, 40, 4), np.linspace(0, 5, 6), indexing="ij")
    return OrderedDict(grid(*variables), lat=lat, lon=lon)


DIAGNOSTICS = {"rain": grid("tp"), "wind": grid("gust", "calm")}


def open_store(path, mode="create", diagnostics=DIAGNOSTICS, config=CONFIG, **kwargs):
    layout = StoreLayout(TIMES, LEADS, diagnostics, ATTRIBUTES, kwargs.pop("ensemble", None))
    made_from = {key: kwargs.pop(key) for key in ("versions", "files") if key in kwargs}
    return ForecastStore(path, layout, Output(mode), Provenance(config, **made_from), **kwargs)


def is_complete(store, diagnostic, time, lead_time, member=None):
    step = {"ensemble": [member], "time": [time], "lead_time": [lead_time]}
    return store.marks.is_complete(diagnostic, step)


def result(coords, i, j, value=None, error=None):
    """What `submit` gives for one step, already there."""
    future = Future()
    shape = (1, 1, len(coords["variable"]), coords["lat"].shape[0], 6)
    x = torch.full(shape, float(10 * i + j) if value is None else value)
    x[0, 0, :, 0, 1] = torch.arange(shape[2])
    if error is None:
        step = OrderedDict(coords, time=TIMES[i : i + 1], lead_time=LEADS[j : j + 1])
        future.set_result((x, step))
    else:
        future.set_exception(error)
    return future


def look(path):
    """Open a store as a user does; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_zarr(path, chunks=None) as ds:  # without dask, which takes longer than reading
            return ds.load()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "forecast.zarr"


def test_a_store_shows_a_cf_dataset(path):
    with open_store(path, versions={"distinf": "0"}) as store:
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 1))
        store.write("wind", result(DIAGNOSTICS["wind"], 1, 2))
    ds = look(path)
    assert set(ds.data_vars) == {"tp", "gust", "calm", "rain_complete", "wind_complete"}
    assert ds["tp"].dims == ("time", "lead_time", "lat", "lon")
    np.testing.assert_array_equal(ds["time"], TIMES)
    np.testing.assert_array_equal(ds["lead_time"], LEADS)
    np.testing.assert_array_equal(ds["lat"], DIAGNOSTICS["rain"]["lat"])
    np.testing.assert_array_equal(ds["lon"], DIAGNOSTICS["rain"]["lon"])
    assert ds["tp"].dtype == ds["gust"].dtype == np.float32
    for name, attributes in ATTRIBUTES.items():
        assert attributes.items() <= ds[name].attrs.items()
    assert ds["lat"].attrs["units"] == "degrees_north"
    assert ds["lon"].attrs["units"] == "degrees_east"
    assert json.loads(ds.attrs["config"]) == CONFIG
    assert json.loads(ds.attrs["versions"]) == {"distinf": "0"}
    assert ds["tp"][0, 1, 1, 1] == 1
    assert ds["gust"][1, 2, 1, 1] == 12
    assert (ds["gust"][1, 2, 0, 1], ds["calm"][1, 2, 0, 1]) == (0, 1)
    assert ds["tp"].notnull().sum() == ds["gust"].notnull().sum() == 24
    np.testing.assert_array_equal(ds["rain_complete"], [[0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(ds["wind_complete"], [[0, 0, 0], [0, 0, 1]])


def test_a_store_is_compressed_zarr_v3_in_one_chunk_a_step(path):
    open_store(path).close()
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == 3
    assert group.metadata.consolidated_metadata is not None
    tp = group["tp"]
    assert tp.chunks == (1, 1, 4, 6)
    assert np.isnan(tp.fill_value)
    assert tp.compressors


@pytest.mark.parametrize("make", [grid, curvilinear])
def test_both_kinds_of_grid(path, make):
    diagnostics = {"rain": make("tp", "sf")}
    with open_store(path, diagnostics=diagnostics) as store:
        store.write("rain", result(diagnostics["rain"], 1, 0))
    ds = look(path)
    np.testing.assert_array_equal(ds["lat"], diagnostics["rain"]["lat"])
    np.testing.assert_array_equal(ds["lon"], diagnostics["rain"]["lon"])
    assert {"lat", "lon"} <= set(ds["tp"].coords)
    assert ds["tp"].shape == (2, 3, 4, 6)
    assert ds["sf"][1, 0, 0, 1] == 1
    assert ds["tp"][1, 0, 3, 5] == 10
    assert bool(ds["rain_complete"][1, 0])


def test_counts_and_completeness(path):
    with open_store(path) as store:
        assert store.marks.counts == (0, 12)
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 1))
        store.close()
        assert store.marks.counts == (1, 12)
        assert is_complete(store, "rain", TIMES[0], LEADS[1])
        assert not is_complete(store, "rain", TIMES[1], LEADS[1])
        assert not is_complete(store, "wind", TIMES[0], LEADS[1])


def test_a_result_is_written_when_it_comes(path):
    with open_store(path) as store:
        future = Future()
        store.write("rain", future)
        done = result(DIAGNOSTICS["rain"], 0, 0).result()
        threading.Thread(target=future.set_result, args=(done,)).start()
    assert bool(look(path)["rain_complete"][0, 0])


def test_writing_waits_when_too_many_results_are_to_come(path):
    store = open_store(path, pending=2)
    futures = [Future() for _ in range(3)]
    written = threading.Event()

    def write():
        for future in futures:
            store.write("rain", future)
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert not written.wait(0.3)
    for j, future in enumerate(futures):
        future.set_result(result(DIAGNOSTICS["rain"], 0, j).result())
    writer.join(30)
    store.close()
    assert look(path)["rain_complete"].values.sum() == 3


def test_two_diagnostics_of_one_variable_are_refused(path):
    with pytest.raises(ConfigError, match="rain and snow both make the variable tp"):
        open_store(path, diagnostics={"rain": grid("tp"), "snow": grid("sf", "tp")})
    assert not path.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("lat", "lon", "time", "lead_time", "ensemble", "variable", "x_complete", "rain_complete"),
        *("lat_wind", "lon_wind", "ilat", "ilon_wind"),
        *("a/b", ".hidden", "__own", "zarr.json"),
    ],
)
def test_a_name_that_the_store_needs_itself_is_refused(path, name):
    """As that of a variable, or of a diagnostic; those of its coordinates are the grids'."""
    for diagnostics in (
        {"rain": grid("tp", name), "wind": curvilinear("gust")},
        {"rain": grid("tp"), "wind": curvilinear(name)},
        {name: grid("tp"), "wind": curvilinear("gust")},
    ):
        with pytest.raises(ConfigError, match=rf"{name}: .*(coord|complete|Zarr).*another name"):
            open_store(path, diagnostics=diagnostics)
        assert not path.exists()
    open_store(path, diagnostics={"rain": grid("tp", "gust_lat"), "of_lat": grid("gust")}).close()


@pytest.mark.parametrize("other", [grid("gust", nlat=3), curvilinear("gust")])
def test_two_diagnostics_on_different_grids_have_dimensions_each(path, other):
    both = {"rain": grid("tp"), "wind": other}
    with open_store(path, diagnostics=both) as store:
        for name, coords in both.items():
            store.write(name, result(coords, 0, 0))
    there = look(path)
    for variable, own in (("tp", False), ("gust", True)):
        field = there[variable]
        assert np.isfinite(field.values[0, 0]).all()
        assert all(str(dim).endswith("_wind") == own for dim in field.dims[2:])
    assert there["gust"].shape[2:] == (other["lat"].shape[0], 6)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, c: (x[..., :3], c),
        lambda x, c: (torch.cat([x, x], dim=2), c),
        lambda x, c: (x[0], OrderedDict(list(c.items())[1:])),
        lambda x, c: (x.transpose(2, 3), OrderedDict((k, c[k]) for k in (*list(c)[:2], "lat"))),
        lambda x, c: (x, OrderedDict(c, lead_time=np.array([5], dtype="timedelta64[h]"))),
        lambda x, c: (x, OrderedDict(c, time=c["time"] + np.timedelta64(1, "h"))),
        lambda x, c: (x[:, :0], OrderedDict(c, lead_time=c["lead_time"][:0])),
        lambda x, c: (x.repeat(1, 2, 1, 1, 1), OrderedDict(c, lead_time=LEADS[:2])),
    ],
    ids=["lon", "variables", "no time", "order", "lead_time", "time", "empty", "two leads"],
)
def test_a_result_that_does_not_fit_is_an_error_that_names_its_task(path, change):
    store = open_store(path)
    future = Future()
    future.set_result(change(*result(DIAGNOSTICS["rain"], 0, 1).result()))
    store.write("rain", future)
    with pytest.raises(StoreError, match="rain"):
        store.close()
    assert look(path)["tp"].isnull().all()
    assert not look(path)["rain_complete"].any()


def test_a_result_of_another_shape_says_which_step_it_is(path):
    store = open_store(path)
    x, coords = result(DIAGNOSTICS["rain"], 0, 1).result()
    future = Future()
    future.set_result((x[..., :3], coords))
    store.write("rain", future)
    with pytest.raises(StoreError, match=r"rain 2023-06-01T00:00 \+6 h: .*'lon': 3.*'lon': 6"):
        store.close()


def failure():
    return TaskError(
        what="Rain.forward",
        task="rain",
        rank=1,
        host="h",
        attempt=1,
        kind="ValueError",
        message="no",
        remote_traceback="",
    )


def test_the_first_error_of_a_task_surfaces_at_the_next_write_and_at_close(path):
    store = open_store(path, pending=1)
    first = failure()
    store.write("rain", result(DIAGNOSTICS["rain"], 0, 0, error=first))
    with pytest.raises(TaskError) as caught:  # pending=1: waits for the first one
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 1, error=failure()))
    assert caught.value is first
    with pytest.raises(TaskError) as caught:
        store.close()
    assert caught.value is first


@pytest.mark.parametrize(
    "go_on",
    [
        lambda store: store.close(),
        lambda store: store.write("rain", result(DIAGNOSTICS["rain"], 0, 1)),
    ],
    ids=["close", "write"],
)
def test_a_write_that_fails_surfaces(path, go_on):
    store = open_store(path, pending=1)
    (path / "tp" / "zarr.json").unlink()
    (path / "tp").rmdir()
    (path / "tp").write_text("in the way")
    store.write("rain", result(DIAGNOSTICS["rain"], 0, 0))
    with pytest.raises(StoreError, match=r"rain 2023-06-01T00:00 \+0 h could not .*zarr: .*tp"):
        go_on(store)
    assert not is_complete(store, "rain", TIMES[0], LEADS[0])
    assert not (path / "rain_complete" / "c").exists()


def test_an_error_inside_the_block_says_how_to_go_on(path):
    def run():
        with open_store(path) as store:
            store.write("rain", result(DIAGNOSTICS["rain"], 0, 0))
            raise failure()

    with pytest.raises(TaskError) as caught:
        run()
    (note,) = [note for note in caught.value.__notes__ if "tasks are complete" in note]
    assert note.startswith("1 of 12 tasks are complete")
    assert "output.mode=resume" in note
    open_store(path, "resume").close()  # and nobody holds it


PLAIN = [sys.executable, "-c"]


def test_opening_a_store_needs_nothing_of_ours(path):
    open_store(path).close()
    code = (
        "import sys, xarray as xr; xr.open_zarr(sys.argv[1]).load(); "
        "assert 'distinf' not in sys.modules"
    )
    subprocess.run([*PLAIN, code, str(path)], check=True, timeout=120)
