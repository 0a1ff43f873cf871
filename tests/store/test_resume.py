"""What a run may continue: the same store as without the interruption, or a refusal in a line."""

import json
import logging
import os
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import xarray as xr
import zarr

from distinf.errors import StoreError
from distinf.loading.sources import read_code, read_files
from distinf.options import Output
from distinf.store import ForecastStore, Provenance, StoreLayout, check_resume
from distinf.store.provenance import differences
from tests.store.test_forecast_store import (
    ATTRIBUTES,
    LEADS,
    TIMES,
    curvilinear,
    grid,
    is_complete,
    look,
    result,
)
from tests.store.test_output_modes import damage, snapshot

STATE = grid("u850", "z850")
BOTH = {"rain": grid("tp"), "prognostic": STATE}


def config(nsteps=2, **sections):
    return {"parameters": {"nsteps": nsteps, "time": "t"}, **sections}


def leads(nsteps):
    return (np.arange(nsteps + 1) * np.timedelta64(6, "h")).astype("timedelta64[ns]")


def run(path, mode="resume", diagnostics=BOTH, nsteps=2, shards=None, verify=False, **options):
    own = config(nsteps, **options.pop("sections", {}))
    output = Output(mode, shards=shards, verify=verify)
    made_from = {key: options.pop(key) for key in ("versions", "files") if key in options}
    layout = StoreLayout(TIMES, leads(nsteps), diagnostics, ATTRIBUTES)
    return ForecastStore(path, layout, output, Provenance(own, **made_from), **options)


def fill(store, diagnostics=BOTH, nsteps=2):
    for name, coords in diagnostics.items():
        for i in range(len(TIMES)):
            for j in range(nsteps + 1):
                step = leads(nsteps)[j : j + 1]
                if not is_complete(store, name, TIMES[i], step[0]):
                    future = result(coords, i, 0, value=10.0 * i + j)
                    future.result()[1]["lead_time"] = step
                    store.write(name, future)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "forecast.zarr"


@pytest.fixture
def made(path):
    with run(path, "create") as store:
        fill(store)
    return path


def refused(path, words, **how):
    """Assert that a run is refused in one line and touches nothing; without its lock, too."""
    before = snapshot(path)
    with pytest.raises(StoreError, match="cannot be resumed") as caught:
        run(path, **how)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert snapshot(path) == before


@pytest.mark.parametrize("nsteps", [2, 4])
@pytest.mark.parametrize(
    "state", [grid("u850"), grid("u850", "z850", "t850"), grid("u850", "t850")]
)
def test_other_variables_of_the_prognostic_cannot_resume(made, nsteps, state):
    """More steps and fewer variables left a store that xarray refused."""
    refused(
        made,
        ["variables", *{"u850", "z850"}.symmetric_difference(map(str, state["variable"]))],
        diagnostics={**BOTH, "prognostic": state},
        nsteps=nsteps,
    )
    assert look(made)["z850"].notnull().any()


def test_a_variable_that_moves_to_another_diagnostic_cannot_resume(made):
    swapped = {"rain": grid("tp", "z850"), "prognostic": grid("u850")}
    refused(made, ["diagnostic of z850", "prognostic", "rain"], diagnostics=swapped)


def shifted(coords, by):
    return OrderedDict(coords, lon=coords["lon"] + by)


@pytest.mark.parametrize("own", [grid("u850", nlat=3), shifted(STATE, 1.0), curvilinear("u850")])
def test_another_grid_of_the_second_diagnostic_cannot_resume(path, own):
    """Its data would have lain somewhere else, marked complete."""
    first = {"rain": grid("tp"), "prognostic": grid("u850", nlat=2)}
    with run(path, "create", first) as store:
        fill(store, first)
    refused(path, ["prognostic"], diagnostics={**first, "prognostic": own})


def test_the_same_grid_one_degree_off_names_both(made):
    both = {"rain": shifted(grid("tp"), 1.0), "prognostic": shifted(STATE, 1.0)}
    refused(made, ["lon: the store has 6 values: 0, 60, ..., 300", "1, 61"], diagnostics=both)


def with_nan():
    coords = curvilinear("tp")
    for key in ("lat", "lon"):
        coords[key] = coords[key].copy()
        coords[key][0, 0] = np.nan
    return coords


def test_a_grid_with_nan_coordinates_is_resumed(path):
    """As satellites' and projected grids have them where they see no point of the Earth."""
    diagnostics = {
        "rain": with_nan(),
        "prognostic": OrderedDict(with_nan(), variable=np.array(["u850"])),
    }
    with run(path, "create", diagnostics) as store:
        store.write("rain", result(diagnostics["rain"], 0, 0))
    with run(path, diagnostics=diagnostics, nsteps=3) as store:
        assert store.marks.counts == (1, 16)
        fill(store, diagnostics, 3)
    assert look(path)["rain_complete"].all()
    assert look(path)["u850"].dims == look(path)["tp"].dims
    other = OrderedDict(with_nan(), lon=curvilinear("tp")["lon"])
    refused(path, ["lon"], diagnostics={**diagnostics, "rain": other}, nsteps=3)


@pytest.mark.parametrize("was", [None, 2])
def test_other_files_than_asked_for_are_refused(path, was):
    """The layout of the store would not be the one that the config says."""
    sections = {"output": {"shards": was}}
    with run(path, "create", shards=was, sections=sections) as store:
        fill(store)
    sections = {"output": {"shards": 3}}
    refused(path, ["output.shards", str(was), "3"], shards=3, sections=sections)


def test_a_switch_that_is_off_is_the_same_as_one_that_is_not_set():
    def own(value):
        return {"diagnostic": {"d": {"_target_": "x", "compile": value}}}

    assert not list(differences(own(False), own(None)))
    assert not list(differences(own(None), own(False)))
    assert not list(differences({"diagnostic": {"d": {"_target_": "x"}}}, own(False)))
    assert list(differences(own(False), own(True)))


@pytest.mark.parametrize("how", [None, "half", "flipped", "empty", "missing"])
def test_a_step_that_is_nan_everywhere_is_whole_in_a_shard(path, how):
    with run(path, "create", shards=3) as store:
        for j in range(3):
            store.write("rain", result(BOTH["rain"], 0, j, value=np.nan))
    array = zarr.open_group(path, mode="r+")["tp"].with_config({"write_empty_chunks": True})
    array[0] = np.nan  # every value of the shard, and the marks stay
    if how is not None:
        damage(path / "tp" / "c" / "0" / "0" / "0" / "0", how)
    with run(path, verify=True) as store:
        assert store.marks.counts[0] == (3 if how is None else 0)


# What a store was made from.


@pytest.fixture
def inputs(tmp_path):
    """An input file, a package of two files and a Zarr store of many."""
    (tmp_path / "in.nc").write_bytes(b"winds" * 1000)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "weights.pt").write_bytes(bytes(3 * 2**20))
    (tmp_path / "package" / "means.npy").write_bytes(b"means")
    many = tmp_path / "states.zarr"
    many.mkdir()
    for i in range(250):
        (many / f"c{i}").write_bytes(b"chunk")
    return tmp_path


def sections(inputs):
    return {
        "data": {"_target_": "x", "paths": [str(inputs / "in.nc")]},
        "diagnostic": {"rain": {"_target_": "x", "package": str(inputs / "package")}},
        "prognostic": {"_target_": "x", "path": str(inputs / "states.zarr")},
    }


@pytest.fixture
def made_from(inputs, path):
    own = sections(inputs)
    with run(path, "create", sections=own, files=read_files(own)) as store:
        fill(store, nsteps=1)
    return path


def change(inputs, how):
    weights = inputs / "package" / "weights.pt"
    if how == "size":
        (inputs / "in.nc").write_bytes(b"winds" * 1001)
    elif how == "content":
        state = weights.stat()
        weights.write_bytes(b"\1" * state.st_size)
        os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif how == "copied":
        shutil.copy(weights, inputs / "copy")
        os.utime(inputs / "copy", ns=(1, 1))
        (inputs / "copy").replace(weights)
    elif how == "more":
        (inputs / "states.zarr" / "c250").write_bytes(b"chunk")
    elif how == "same sizes":
        (inputs / "states.zarr" / "c7").write_bytes(b"CHUNK")
    elif how == "fewer":
        for i in range(100):
            (inputs / "states.zarr" / f"c{i}").unlink()
    elif how == "gone":
        (inputs / "package" / "means.npy").unlink()
    elif how == "new":
        (inputs / "package" / "README").write_bytes(b"read me")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("size", ["in.nc", "data.paths[0]", "5000 bytes", "5005"]),
        ("content", ["weights.pt", "diagnostic.rain.package"]),
    ],
)
def test_another_input_file_or_package_cannot_resume(made_from, inputs, how, words):
    change(inputs, how)
    own = sections(inputs)
    refused(made_from, words, sections=own, files=read_files(own))
    with pytest.raises(StoreError, match=words[0]):
        check_resume(made_from, config(**own), read_files(own))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("copied", ["weights.pt", "diagnostic.rain.package"]),
        ("more", ["states.zarr", "prognostic.path"]),
        ("same sizes", ["states.zarr", "prognostic.path", "written again"]),
        ("fewer", ["prognostic.path"]),
        ("gone", ["means.npy", "diagnostic.rain.package", "no longer"]),
        ("nothing", []),
        ("new", []),
    ],
)
def test_what_may_have_changed_is_said_in_one_line(made_from, inputs, how, words, caplog, said):
    change(inputs, how)
    own = sections(inputs)
    check_resume(made_from, config(**own), read_files(own))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING), run(made_from, sections=own, files=read_files(own)):
            pass
        assert len(said()) == (1 if words else 0)
        for word in words:
            assert word in "".join(said())
    history = look(made_from).attrs["history"].splitlines()
    assert len(history) == (2 if words else 1)
    assert all(word in history[-1] for word in words)


def test_other_versions_are_said_in_one_line_and_stay_in_the_history(path, said):
    with run(path, "create", versions={"torch": "2.13.0", "zarr": "3.1.6"}) as store:
        fill(store, nsteps=1)
    with run(path, versions={"torch": "2.14.1", "zarr": "3.1.6", "new": "1"}) as store:
        assert store.marks.counts[0] == 8
    (line,) = said()
    assert "torch is 2.14.1, it was 2.13.0" in line
    assert "zarr" not in line.replace(str(path), "")
    there = look(path)
    assert json.loads(there.attrs["versions"])["torch"] == "2.13.0"
    assert "resumed by distinf: torch is 2.14.1, it was 2.13.0" in there.attrs["history"]


@pytest.mark.parametrize("kind", ["module", "package"])
def test_other_code_of_a_model_is_said_in_one_line(path, tmp_path, monkeypatch, said, kind):
    """Of one that is not installed, so that it has no version."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"audited_{kind}"
    code = tmp_path / f"{name}.py"
    if kind == "package":
        code = tmp_path / name / "models" / "rain.py"
        code.parent.mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("")
    code.write_text("class Rain: factor = 1")
    own = {
        "diagnostic": {"rain": {"_target_": f"{name}.models.rain.Rain", "x": [{"_target_": "a.b"}]}}
    }
    with run(path, "create", sections=own, versions=read_code(own)) as store:
        fill(store, nsteps=1)
    run(path, sections=own, versions=read_code(own)).close()
    assert said() == []
    code.write_text("class Rain: factor = 2")
    run(path, sections=own, versions=read_code(own)).close()
    (line,) = said()
    assert f"the code of {name} is " in line


def test_the_code_of_what_is_installed_is_its_version():
    own = {"data": {"_target_": "xarray.open_dataset"}, "prognostic": {"_target_": "distinf.a.B"}}
    assert read_code(own) == {"the code of xarray": xr.__version__}


def test_a_word_of_the_config_is_no_file_because_one_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("u850", "in.nc", "plain"):
        (tmp_path / name).write_bytes(b"x")
    own = {"data": {"variable": ["u850"], "file": "in.nc", "path": "plain", "level": 850}}
    assert set(read_files(own)) == {"data.file", "data.path"}


def test_a_folder_that_a_model_writes_to_refuses_no_resume(path, inputs, monkeypatch, said):
    """Nor is one around the working folder an input."""
    scratch = inputs / "scratch"
    scratch.mkdir()
    (scratch / "log").write_bytes(b"first")
    own = {"diagnostic": {"rain": {"_target_": "x", "folder": str(scratch)}}}
    with run(path, "create", sections=own, files=read_files(own)) as store:
        fill(store, nsteps=1)
    (scratch / "log").write_bytes(b"second run")
    run(path, sections=own, files=read_files(own)).close()
    (line,) = said()
    assert "scratch (diagnostic.rain.folder)" in line
    monkeypatch.chdir(scratch)
    assert read_files(own) == {}


@pytest.mark.parametrize("shards", [None, 4])
def test_a_store_that_was_read_may_be_completed_but_not_made_again(path, tmp_path, said, shards):
    states = tmp_path / "states.zarr"
    with run(states, "create", shards=shards) as store:
        fill(store, nsteps=1)
    own = {"data": {"_target_": "x", "path": str(states)}}
    with run(path, "create", sections=own, files=read_files(own)) as store:
        fill(store, nsteps=1)
    run(states, shards=shards).close()  # nothing is written but its lock
    run(path, sections=own, files=read_files(own)).close()
    assert not said()
    with run(states, nsteps=3, shards=shards, versions={"torch": "2"}) as store:
        fill(store, nsteps=3)
    run(path, sections=own, files=read_files(own)).close()
    (line,) = said()
    assert "files in the folder states.zarr (data.path) have changed" in line
    changed = zarr.open_group(states, use_consolidated=False)
    changed.attrs["history"] = "2020-01-01T00:00:00+00:00 created by distinf"
    words = ["store states.zarr (data.path) is not the one", "created at 20"]
    refused(path, words, sections=own, files=read_files(own))


def test_a_package_in_the_cache_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("EARTH2STUDIO_CACHE", str(tmp_path))
    monkeypatch.delenv("EARTH2STUDIO_MODEL_CACHE", raising=False)
    model = {"_target_": "distinf.loading.load_model", "model": "earth2studio.models.px.FCN"}
    own = {"prognostic": {**model, "package": None}}
    assert read_files(own) == {}
    (tmp_path / "fcn").mkdir()
    (tmp_path / "fcn" / "fcn.mdlus").write_bytes(b"weights")
    (tmp_path / "fcn" / "cache").write_bytes(b"what was fetched when")
    assert set(read_files(own)["prognostic.package"]) == {"fcn.mdlus"}


# Stores that earlier versions left.


def test_a_store_of_before_without_record_is_resumed(made, said):
    group = zarr.open_group(made, mode="r+", use_consolidated=False)
    attributes = group.attrs.asdict()
    del attributes["files"]
    group.attrs.put(attributes)
    with run(made, nsteps=3, files={"data.path": {}}, versions={"torch": "1"}) as store:
        assert store.marks.counts == (12, 16)
        fill(store, nsteps=3)
    assert said() == []
    assert look(made)["prognostic_complete"].all()


def test_a_store_whose_variables_differ_in_length_is_completed(made):
    """Left by a run with more steps and fewer variables."""
    group = zarr.open_group(made, mode="r+", use_consolidated=False)
    for name in ("tp", "rain_complete", "u850", "prognostic_complete"):
        size = list(group[name].shape)
        size[1] = 5
        group[name].resize(tuple(size))
    group["prognostic_complete"][0, 3] = True  # with u850 alone
    group["lead_time"].resize((5,))
    group["lead_time"][:] = np.arange(5) * 6 * 3600
    with pytest.warns(UserWarning, match="Consolidated"):
        zarr.consolidate_metadata(made)
    with pytest.raises(ValueError, match="conflicting sizes"):
        xr.open_zarr(made)
    with run(made, nsteps=4) as store:
        assert store.marks.counts == (12, 20)
        fill(store, nsteps=4)
    there = look(made)
    assert there["z850"].sizes["lead_time"] == 5
    assert there["prognostic_complete"].all()
    np.testing.assert_array_equal(there["z850"][0, :, 1, 1], np.arange(5))


def test_lead_times_that_were_left_empty_are_completed(made):
    """Left by a run that was killed while it made room for more."""
    group = zarr.open_group(made, mode="r+", use_consolidated=False)
    group["lead_time"].resize((5,))
    group["lead_time"][3:] = 0
    with run(made, nsteps=4) as store:
        fill(store, nsteps=4)
    np.testing.assert_array_equal(look(made)["lead_time"], leads(4))
    assert LEADS.shape == (3,)


def test_more_room_that_nobody_uses_is_given_back(made):
    """A run with more steps was killed before it was visible; the shorter run goes on."""
    group = zarr.open_group(made, mode="r+", use_consolidated=False)
    for name in ("tp", "rain_complete"):
        size = list(group[name].shape)
        size[1] = 5
        group[name].resize(tuple(size))
    with run(made) as store:
        assert store.marks.counts == (12, 12)
    assert look(made)["tp"].sizes["lead_time"] == 3
