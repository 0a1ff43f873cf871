"""Members, files of several lead times, room on the disk, and object stores."""

import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from concurrent.futures import Future

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.errors import ConfigError, StoreError
from distinf.options import Output
from distinf.store import ForecastStore, Provenance, StoreLayout, check_output
from distinf.store.netcdf import check_netcdf, to_netcdf
from tests import s3_server
from tests.store.test_forecast_store import is_complete

TIMES = np.array(["2023-06-01", "2023-06-02"], "M8[ns]")
LEADS = (np.arange(5) * np.timedelta64(6, "h")).astype("m8[ns]")
MEMBERS = np.arange(3)


def grid(*variables, member=None):
    coords = OrderedDict(
        time=TIMES[:1],
        lead_time=LEADS[:1],
        variable=np.array(variables),
        lat=np.linspace(90, -90, 4),
        lon=np.linspace(0, 300, 6),
    )
    if member is not None:
        coords = OrderedDict(ensemble=np.array([member]), **coords)
    return coords


def result(i, j, member=None, name="tp"):
    future = Future()
    coords = grid(name, member=member)
    coords.update(time=TIMES[i : i + 1], lead_time=LEADS[j : j + 1])
    shape = [len(values) for values in coords.values()]
    future.set_result((torch.full(shape, 100.0 * (member or 0) + 10 * i + j), coords))
    return future


def open_store(path, ensemble=None, config=None, **output):
    diagnostics = {"rain": grid("tp", member=None if ensemble is None else 0)}
    layout = StoreLayout(TIMES, LEADS, diagnostics, ensemble=ensemble)
    return ForecastStore(path, layout, Output(**output), Provenance(config or {}))


def values(path):
    with xr.open_zarr(path) as ds:
        return ds["tp"].values[..., 0, 0], ds["rain_complete"].values


def files(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def test_an_ensemble_has_a_first_dimension(tmp_path):
    path = tmp_path / "f.zarr"
    with open_store(path, MEMBERS) as store:
        store.write("rain", result(1, 2, member=2))
        assert store.marks.incomplete(TIMES, MEMBERS)[1] == 4
        for j in (0, 1, 3, 4):
            store.write("rain", result(1, j, member=2))
    with open_store(path, MEMBERS, mode="resume") as store:
        assert is_complete(store, "rain", TIMES[1], LEADS[2], 2)
        assert not is_complete(store, "rain", TIMES[1], LEADS[2], 1)
        assert store.marks.incomplete(TIMES[1:], MEMBERS[2:]) is None
        assert store.marks.incomplete(TIMES[1:], MEMBERS[1:])[1] == 4
        assert store.marks.lacking(grid(member=1)) == ["rain"]
    with xr.open_zarr(path) as ds:
        assert ds["tp"].dims == ("ensemble", "time", "lead_time", "lat", "lon")
        assert ds["ensemble"].attrs["standard_name"] == "realization"
        assert float(ds["tp"].sel(ensemble=2, time="2023-06-02", lead_time="12h")[0, 0]) == 212


def test_another_number_of_members_cannot_resume(tmp_path):
    open_store(tmp_path / "f.zarr", MEMBERS).close()
    with pytest.raises(StoreError, match="ensemble: the store has"):
        open_store(tmp_path / "f.zarr", np.arange(4), mode="resume")


def test_a_state_between_the_stored_lead_times_lacks_nothing(tmp_path):
    with open_store(tmp_path / "f.zarr") as store:
        between = OrderedDict(grid("tp"), lead_time=LEADS[:1] + np.timedelta64(1, "h"))
        assert store.marks.lacking(between) == []


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(5)), st.integers(1, 7))
def test_shards_hold_what_single_files_hold(tmp_path_factory, order, shards):
    path = tmp_path_factory.mktemp("shards")
    for name, options in (("one.zarr", {}), ("many.zarr", {"shards": shards})):
        with open_store(path / name, **options) as store:
            for j in order:
                store.write("rain", result(0, j))
    for one, many in zip(values(path / "one.zarr"), values(path / "many.zarr"), strict=True):
        np.testing.assert_array_equal(one, many)
    data = [f for f in files(path / "many.zarr") if f.startswith("tp/c/")]
    assert len(data) == -(-5 // shards)


@pytest.mark.parametrize("written", [[0], [1], [0, 1], [2, 0], [3], [4, 1]])
def test_a_shard_that_was_begun_is_completed(tmp_path, written):
    path = tmp_path / "f.zarr"
    with open_store(path, shards=3) as store:
        for j in written:
            store.write("rain", result(0, j))
    assert np.flatnonzero(values(path)[1][0]).tolist() == sorted(written)
    assert np.flatnonzero(~np.isnan(values(path)[0][0])).tolist() == sorted(written)
    with open_store(path, mode="resume", shards=3) as store:
        assert store.marks.counts == (len(written), 10)
        for j in set(range(5)) - set(written):
            store.write("rain", result(0, j))
    np.testing.assert_array_equal(values(path)[0][0], range(5))
    assert values(path)[1][0].all()


@pytest.mark.parametrize(("shards", "more"), [(None, {}), (3, {}), (9, {"shards": 2})])
def test_more_steps_extend_a_store(tmp_path, shards, more):
    path = tmp_path / "f.zarr"
    rain = {"rain": grid("tp")}
    short, long = StoreLayout(TIMES, LEADS[:2], rain), StoreLayout(TIMES, LEADS, rain)
    first, resume = Output("create", shards=shards), Output("resume", **more)
    config = {"parameters": {"nsteps": 1, "time": "t"}}
    with ForecastStore(path, short, first, Provenance(config)) as store:
        store.write("rain", result(0, 0))
        store.write("rain", result(0, 1))
    config = {"parameters": {"nsteps": 4, "time": "t"}}
    with ForecastStore(path, long, resume, Provenance(config)) as store:
        assert store.marks.counts == (2, 10)
        assert store.marks.incomplete(TIMES[:1], None)[1] == 4
        for j in (3, 2, 4):
            store.write("rain", result(0, j))
    with xr.open_zarr(path) as ds:
        np.testing.assert_array_equal(ds["lead_time"], LEADS)
        assert json.loads(ds.attrs["config"]) == config
    np.testing.assert_array_equal(values(path)[0][0], range(5))
    assert values(path)[1][0].all()
    config = {"parameters": {"nsteps": 1, "time": "t"}}
    with pytest.raises(StoreError, match=r"parameters\.nsteps: the store has 4, this run 1"):
        ForecastStore(path, short, Output("resume"), Provenance(config))


def test_a_run_that_does_not_fit_is_refused_before_anything_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "f.zarr"
    with open_store(path) as store:
        store.write("rain", result(0, 0))
    before = files(path)
    small = os.statvfs_result((1, 1, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr("os.statvfs", lambda _: small)
    monkeypatch.setattr(StoreLayout, "nbytes", 10**10)
    with pytest.raises(StoreError, match=r"up to 10\.0 GB .* 0\.0 GB are free.*output\.region"):
        open_store(path, mode="overwrite")
    assert files(path) == before
    open_store(path, mode="overwrite", check_space=False).close()


def test_a_clash_of_names_says_how_to_rename(tmp_path):
    layout = StoreLayout(TIMES, LEADS, {"rain": grid("tp"), "snow": grid("tp")})
    with pytest.raises(ConfigError, match=r"diagnostic\.snow\.rename=\{tp: tp_snow\}"):
        ForecastStore(tmp_path / "f.zarr", layout)


def test_netcdf_holds_what_the_store_holds(tmp_path):
    path, copy = tmp_path / "f.zarr", tmp_path / "f.nc"
    with open_store(path, MEMBERS) as store:
        store.write("rain", result(1, 2, member=2))
    to_netcdf(str(path), str(copy))
    with xr.open_zarr(path) as ours, xr.open_dataset(copy) as theirs:
        xr.testing.assert_equal(ours["tp"].load(), theirs["tp"].load())
        np.testing.assert_array_equal(ours["rain_complete"], theirs["rain_complete"])
        assert json.loads(theirs.attrs["config"]) == {}
    with pytest.raises(StoreError, match=r"output\.netcdf=.*missing"):
        to_netcdf(str(path), str(tmp_path / "missing" / "f.nc"))


def nc_attributes(path):
    with xr.open_dataset(path) as there:
        return dict(there.attrs)


def test_netcdf_says_which_steps_are_missing(tmp_path, caplog, said):
    path, copy = tmp_path / "f.zarr", tmp_path / "f.nc"
    with open_store(path, MEMBERS) as store:
        for i, j, k in np.ndindex(2, 5, 3):
            if (i, j, k) not in ((0, 2, 1), (1, 4, 0)):
                store.write("rain", result(i, j, member=k))
    with caplog.at_level("WARNING", "distinf"):
        to_netcdf(str(path), str(copy))
    missing = "rain 2023-06-02T00:00 +24 h member 0, rain 2023-06-01T00:00 +12 h member 1"
    assert nc_attributes(copy)["missing_steps"] == missing
    (line,) = said()
    assert line.startswith(f"output.netcdf={copy} lacks 2 step(s)")
    assert line.endswith(missing)
    with open_store(path, MEMBERS, mode="resume") as store:
        store.write("rain", result(0, 2, member=1))
        store.write("rain", result(1, 4, member=0))
    caplog.clear()
    to_netcdf(str(path), str(copy), "resume")
    assert "missing_steps" not in nc_attributes(copy)
    assert said() == []


def test_netcdf_names_only_so_many_missing_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("distinf.store.netcdf._NAMED", 3)
    with open_store(tmp_path / "f.zarr"):
        pass
    to_netcdf(str(tmp_path / "f.zarr"), str(tmp_path / "f.nc"))
    assert nc_attributes(tmp_path / "f.nc")["missing_steps"].endswith("+12 h, and 7 more")


@pytest.mark.parametrize(
    ("made", "taken"),
    [
        ("of this store", {"overwrite", "resume"}),
        ("of this store by a link", {"overwrite", "resume"}),
        ("of another store", {"overwrite"}),
        ("by an earlier distinf", {"overwrite"}),
        ("by somebody else", set()),
        ("as text", set()),
    ],
)
@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
def test_which_netcdf_file_is_replaced(tmp_path, made, taken, mode):
    store, other, file = tmp_path / "f.zarr", tmp_path / "g.zarr", tmp_path / "f.nc"
    for path in (store, other):
        with open_store(path):
            pass
    (tmp_path / "link.zarr").symlink_to(store)
    if made == "by somebody else":
        xr.Dataset({"t2m": 1.0}, attrs={"config": "mine"}).to_netcdf(file)
    elif made == "as text":
        file.write_text("years of work")
    elif made == "by an earlier distinf":
        xr.Dataset({"rain_complete": True}, attrs={"config": "{}"}).to_netcdf(file)
    else:
        origin = {"of another store": other, "of this store": store}
        to_netcdf(str(origin.get(made, tmp_path / "link.zarr")), str(file))
    before = file.read_bytes()
    if mode in taken:
        check_netcdf(str(file), str(store), mode)
        to_netcdf(str(store), str(file), mode)
        assert nc_attributes(file)["distinf_store"] == str(store)
        return
    with pytest.raises(StoreError, match=r"^output\.netcdf=\S+ exists already.*path.*$"):
        check_netcdf(str(file), str(store), mode)
    with pytest.raises(StoreError, match=r"exists already.* is kept"):  # it came meanwhile
        to_netcdf(str(store), str(file), mode)
    assert file.read_bytes() == before


def test_a_netcdf_file_in_no_folder_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"output\.netcdf=.*none does not exist; make it first"):
        check_netcdf(str(tmp_path / "none" / "f.nc"), "f.zarr", "overwrite")


@pytest.fixture(scope="module")
def bucket():
    """A real S3 server on loopback, and a bucket in it."""
    with s3_server.s3("forecasts") as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("shards", [None, 2])
def test_a_store_in_a_bucket_is_as_one_in_a_folder(bucket, tmp_path, shards):
    url = f"{bucket}/run{shards}.zarr"
    for path in (url, tmp_path / "f.zarr"):
        with open_store(path, shards=shards) as store:
            store.write("rain", result(0, 1))
        with open_store(path, mode="resume", shards=shards) as store:
            assert store.marks.counts == (1, 10)
            for j in (0, 2, 3, 4):
                store.write("rain", result(0, j))
    for ours, theirs in zip(values(url), values(tmp_path / "f.zarr"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(StoreError, match=r"exists already.*output\.mode=resume"):
        open_store(url)
    open_store(url, mode="overwrite").close()
    assert not values(url)[1].any()


def test_what_is_no_store_in_a_bucket_is_never_touched(bucket):
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"{bucket}/thesis/ch1.tex", b"years")
    with pytest.raises(StoreError, match="was not made by distinf"):
        open_store(f"{bucket}/thesis", mode="overwrite")


HOLD = """
import sys, time
from distinf.store.destination import find_destination
held = find_destination(sys.argv[1]); held.hold(); print("held", flush=True); time.sleep(600)
"""


@pytest.mark.slow
def test_a_second_run_on_one_object_store_is_refused_and_a_dead_ones_hold_is_not(bucket):
    url = f"{bucket}/held.zarr"
    other = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"held by another run: host .*process {other.pid}"):
            open_store(url, mode="resume")
        other.send_signal(signal.SIGKILL)
        other.wait(30)
        with open_store(url, mode="resume") as store:
            store.write("rain", result(0, 0))
    finally:
        other.kill()
        other.wait()
    assert values(url)[1].sum() == 1


def test_a_bucket_that_cannot_be_written_is_explained(bucket, monkeypatch):
    with pytest.raises(StoreError, match=r"s3://nowhere/f\.zarr cannot be written.*must exist"):
        check_output("s3://nowhere/f.zarr", "create")
    with pytest.raises(StoreError, match=r"parameters\.output_path=ftps3://x/f\.zarr"):
        check_output("ftps3://x/f.zarr", "create")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r"credentials.*AWS_ACCESS_KEY_ID"):
        check_output(f"{bucket}/f.zarr", "create")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
def test_a_folder_in_which_nothing_can_be_made_is_refused(mode):
    with pytest.raises(StoreError, match=r"/proc/x\.zarr: no folder can be made in /proc \("):
        check_output("/proc/x.zarr", mode)
