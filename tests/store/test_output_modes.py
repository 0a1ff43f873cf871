"""An existing store: refused, replaced, continued, and held by one run at a time."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
import xarray as xr
import zarr

from distinf.errors import ConfigError, StoreError
from distinf.options import Output
from distinf.store import ForecastStore, Provenance, StoreLayout, check_output
from tests.store.test_forecast_store import (
    ATTRIBUTES,
    CONFIG,
    DIAGNOSTICS,
    LEADS,
    TIMES,
    curvilinear,
    grid,
    is_complete,
    look,
    open_store,
    result,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "forecast.zarr"


@pytest.fixture
def begun(path):
    """A store in which one step is complete."""
    with open_store(path) as store:
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 1))
    return path


def snapshot(path):
    return {
        str(p.relative_to(path)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in path.rglob("*")
        if p.is_file()
    }


@pytest.mark.parametrize("check", [open_store, lambda path: check_output(path, "create")])
def test_create_refuses_an_existing_store_and_touches_nothing(begun, check):
    before = snapshot(begun)
    with pytest.raises(StoreError) as caught:
        check(begun)
    for choice in ("another path", "output.mode=resume", "output.mode=overwrite", str(begun)):
        assert choice in str(caught.value)
    assert snapshot(begun) == before


@pytest.mark.parametrize("mode", ["overwrite", "resume"])
def test_what_is_no_store_is_never_touched(path, mode):
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="was not made by distinf"):
        open_store(path, mode)
    assert (path / "thesis.tex").read_text() == "years of work"
    assert sorted(os.listdir(path)) == ["thesis.tex"]


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
def test_a_file_in_place_of_the_store_is_never_touched(path, mode):
    path.write_text("notes")
    with pytest.raises(StoreError, match=str(path)):
        open_store(path, mode)
    assert path.read_text() == "notes"


def test_a_missing_parent_folder_is_named(tmp_path):
    with pytest.raises(StoreError, match="missing does not exist"):
        open_store(tmp_path / "missing" / "forecast.zarr")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", ["overwrite", "resume"])
def test_these_modes_create_where_there_is_nothing(path, mode):
    with open_store(path, mode) as store:
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 0))
    assert look(path)["rain_complete"].values.sum() == 1


def test_overwrite_replaces(begun):
    with open_store(begun, "overwrite", {"wind": grid("gust")}) as store:
        assert store.marks.counts == (0, 6)
        store.write("wind", result(grid("gust"), 0, 0))
    ds = look(begun)
    assert set(ds.data_vars) == {"gust", "wind_complete"}
    assert ds["gust"].notnull().sum() == 24


def test_resume_keeps_what_is_complete(begun):
    before = snapshot(begun)
    with open_store(begun, "resume") as store:
        assert store.marks.counts == (1, 12)
        assert is_complete(store, "rain", TIMES[0], LEADS[1])
        assert not is_complete(store, "rain", TIMES[0], LEADS[0])
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 0, value=5.0))
    after = snapshot(begun)
    chunk = "tp/c/0/1/0/0"
    assert after[chunk] == before[chunk]
    ds = look(begun)
    np.testing.assert_array_equal(ds["rain_complete"], [[1, 1, 0], [0, 0, 0]])
    assert (ds["tp"][0, 0, 1, 1], ds["tp"][0, 1, 1, 1]) == (5, 1)


def test_a_step_is_marked_after_its_data(begun):
    """A run killed between the two does the step again."""
    (begun / "rain_complete" / "c" / "0" / "1").unlink()
    with open_store(begun, "resume") as store:
        assert not is_complete(store, "rain", TIMES[0], LEADS[1])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"parameters": {"nsteps": 1, "time": "2023-06-01"}}, ["parameters.nsteps", "2", "1"]),
        ({"parameters": {"nsteps": 2}}, ["parameters.time", "2023-06-01", "None"]),
        ({**CONFIG, "prognostic": {"_target_": "P"}}, ["prognostic", "None", "P"]),
    ],
)
def test_another_config_cannot_resume(begun, config, words):
    before = snapshot(begun)
    with pytest.raises(StoreError, match="cannot be resumed") as caught:
        open_store(begun, "resume", config=config)
    for word in words:
        assert word in str(caught.value)
    after = snapshot(begun)
    assert {k for k in before if after[k] != before[k]} <= {".distinf.lock", ".distinf.lock.json"}
    open_store(begun, "resume").close()  # the refused one holds nothing


def test_what_does_not_decide_the_bytes_may_change(begun):
    other = {**CONFIG, "runtime": {"nproc": 8}, "output": {"mode": "resume"}, "recipe": "x"}
    other["parameters"] = {**CONFIG["parameters"], "output_path": "elsewhere.zarr"}
    with open_store(begun, "resume", config=other) as store:
        assert store.marks.counts[0] == 1


@pytest.mark.parametrize(
    ("times", "leads", "diagnostics", "word"),
    [
        (TIMES[:1], LEADS, DIAGNOSTICS, "time: "),
        (TIMES, LEADS[:2], DIAGNOSTICS, "lead_time: "),
        (TIMES, LEADS, {"rain": grid("tp", "sf")}, "variables: "),
        (TIMES, LEADS, {"snow": grid("tp")}, "snow"),
        (TIMES, LEADS, {"rain": grid("tp", nlat=3)}, "lat"),
        (TIMES, LEADS, {"rain": grid("tp", nlon=5)}, "lon"),
        (TIMES, LEADS, {"rain": curvilinear("tp")}, "lat"),
    ],
    ids=["time", "lead_time", "variables", "diagnostic", "lat", "lon", "curvilinear"],
)
def test_another_shape_cannot_resume(begun, times, leads, diagnostics, word):
    with pytest.raises(StoreError, match="cannot be resumed") as caught:
        ForecastStore(
            begun, StoreLayout(times, leads, diagnostics), Output("resume"), Provenance(CONFIG)
        )
    assert word in str(caught.value)


def test_a_store_that_something_else_made_is_never_touched(path):
    look_alike = grid("tp")
    xr.Dataset(coords={"lat": look_alike["lat"]}).to_zarr(path, zarr_format=3, consolidated=False)
    before = snapshot(path)
    for mode in ("resume", "overwrite"):
        with pytest.raises(StoreError, match="was not made by distinf"):
            open_store(path, mode)
    assert snapshot(path) == before


@pytest.mark.parametrize("at", ["create", "zarr.open_group", "Marks"])
@pytest.mark.parametrize("mode", ["resume", "overwrite"])
def test_a_run_killed_while_it_creates_the_store_can_be_run_again(path, monkeypatch, at, mode):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"distinf.store.forecast_store.{at}", killed)
        with pytest.raises(KeyboardInterrupt):
            open_store(path, mode)
    with open_store(path, mode) as store:
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 1))
    assert look(path)["tp"].notnull().sum() == 24


@pytest.mark.parametrize("arrays", range(5))
def test_a_store_that_was_created_in_part_is_created_anew(path, monkeypatch, arrays):
    calls = iter(range(arrays))
    original = zarr.Group.create_array

    def create_array(*args, **kwargs):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Group, "create_array", create_array)
        with pytest.raises(KeyboardInterrupt):
            open_store(path)
    with pytest.raises(StoreError, match="exists already"):
        open_store(path)
    with open_store(path, "resume") as store:
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 1))
    assert set(look(path)) == {"tp", "gust", "calm", "rain_complete", "wind_complete"}


def test_a_hold_of_which_nothing_is_known_yet_is_a_hold(begun):
    with filelock.FileLock(begun / ".distinf.lock"):
        (begun / ".distinf.lock.json").write_text("")
        with pytest.raises(StoreError, match="held by another run"):
            open_store(begun, "resume")


def test_closing_twice_is_closing_once(path):
    store = open_store(path)
    store.close()
    store.close()


def test_a_store_is_let_go_when_it_cannot_be_opened(path):
    with pytest.raises(ConfigError):
        open_store(path, diagnostics={"a": grid("tp"), "b": grid("tp")})
    open_store(path).close()


HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.store.test_forecast_store import open_store
store = open_store(Path(sys.argv[1]), sys.argv[3])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_store_that_another_run_holds_is_refused_until_that_run_is_dead(begun):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(begun), str(Path(__file__).parents[2]), "resume"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        for mode in ("resume", "overwrite"):
            with pytest.raises(StoreError, match="held by another run") as caught:
                open_store(begun, mode)
            for word in (socket.gethostname(), f"process {holder.pid}", "since 20"):
                assert word in str(caught.value)
        assert look(begun)["tp"].notnull().sum() == 24  # and nothing was lost
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=30)
    with open_store(begun, "resume") as store:
        assert store.marks.counts == (1, 12)


def damage(path, how):
    """What a lost node may leave: half a file, an empty one, none."""
    if how == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["half", "flipped", "empty", "missing"])
@pytest.mark.parametrize("shards", [None, 2])
def test_what_a_lost_node_left_is_found_and_computed_again(path, how, shards, caplog):
    def opened(mode, **output):
        options = Output(mode, shards=shards, **output)
        layout = StoreLayout(TIMES, LEADS, DIAGNOSTICS, ATTRIBUTES)
        return ForecastStore(path, layout, options, Provenance(CONFIG))

    with opened("create") as store:
        for j in range(3):
            store.write("wind", result(DIAGNOSTICS["wind"], 0, j))
            store.write("rain", result(DIAGNOSTICS["rain"], 0, j, value=float("nan")))
    with opened("resume", verify=True) as store:
        assert store.marks.counts[0] == 6
    damage(path / "calm" / "c" / "0" / "0" / "0" / "0", how)
    with opened("resume") as store:
        assert store.marks.counts[0] == 6
    with opened("resume", verify=True) as store:
        assert store.marks.counts[0] == (5 if shards is None else 4)
        assert "wind 2023-06-01T00:00 +0 h" in caplog.text
        for j in range(2):
            if not is_complete(store, "wind", TIMES[0], LEADS[j]):
                store.write("wind", result(DIAGNOSTICS["wind"], 0, j))
    ds = look(path)
    assert ds["calm"][0].notnull().all()
    assert ds["wind_complete"][0].all()


@pytest.mark.parametrize("how", ["half", "empty"])
def test_a_damaged_mark_counts_as_not_set(begun, how):
    damage(begun / "rain_complete" / "c" / "0" / "1", how)
    with open_store(begun, "resume") as store:
        assert store.marks.counts[0] == 0
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 1))
    assert look(begun)["rain_complete"].sum() == 1
