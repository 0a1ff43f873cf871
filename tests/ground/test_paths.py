"""What a run reads, and where it runs, is never where it writes."""

import copy
import functools
import os
from pathlib import Path

import hydra
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from distinf.errors import ConfigError
from distinf.loading.sources import caches, inputs
from distinf.paths import lies_in
from recipes.diagnostic import check
from recipes.shared.checks import check_paths

CFG = Path(__file__).parents[2] / "cfg"
ANY_MODE = ("create", *(pytest.param(m, marks=pytest.mark.slow) for m in ("overwrite", "resume")))


@functools.cache
def composed():
    with hydra.initialize_config_dir(str(CFG), version_base="1.3"):
        return hydra.compose("shallow_water", ["data=file"])


def compose(*overrides):
    """Return a config with other values of some keys; Hydra takes a fifth of a second for it."""
    cfg = copy.deepcopy(composed())
    for key, _, value in (item.partition("=") for item in overrides):
        OmegaConf.update(cfg, key.lstrip("+"), value, force_add=key.startswith("+"))
    return cfg


def content(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working folder with an input store in ``data/in.zarr`` and links to it."""
    folder = tmp_path / "work"
    (folder / "data").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name in ("EARTH2STUDIO_MODEL_CACHE", "EARTH2STUDIO_DATA_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EARTH2STUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    coords = {"time": np.array(["2000-01-01"], "M8[ns]"), "lat": [1.0, 0.0], "lon": [0.0, 1.0]}
    fields = xr.Dataset({"u850": (("time", "lat", "lon"), np.ones((1, 2, 2)))}, coords)
    fields.to_zarr("data/in.zarr")
    os.symlink("data/in.zarr", "link.zarr")
    os.symlink("data", "also")
    return folder


@pytest.mark.parametrize("mode", ANY_MODE)
@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("data/in.zarr", "is"),
        ("data/in.zarr/", "is"),
        ("link.zarr", "is"),
        ("also/in.zarr", "is"),
        ("data/../data/./in.zarr", "is"),
        ("../work/data/in.zarr", "is"),
        ("data", "contains"),
        ("also", "contains"),
        ("data/in.zarr/u850", "lies in"),
        ("link.zarr/new.zarr", "lies in"),
        ("file://{work}/data/in.zarr", "is"),
        ("file:///{work}/data/in.zarr", "is"),
        ("FILE://{work}/data/in.zarr", "is"),
        ("file://data/in.zarr", "is"),
        ("local://data", "contains"),
    ],
)
def test_an_output_that_overlaps_the_input_is_refused_and_touches_nothing(work, mode, path, how):
    before = content(work)
    path = path.format(work=work)
    cfg = compose("data.path=data/in.zarr", f"output.mode={mode}", f"parameters.output_path={path}")
    with pytest.raises(ConfigError, match=rf"parameters\.output_path=\S+ {how} data\.path") as said:
        check(cfg)
    assert "\n" not in str(said.value)
    assert content(work) == before


@pytest.mark.parametrize(
    "given", ["{work}/data/in.zarr", "link.zarr", "file://{work}/data/in.zarr"]
)
def test_the_input_is_recognized_by_any_of_its_names(work, given):
    cfg = compose(f"data.path={given.format(work=work)}", "parameters.output_path=data/in.zarr")
    with pytest.raises(ConfigError, match=r"output_path=data/in\.zarr is data\.path"):
        check(cfg)


@pytest.mark.parametrize("path", [".", "..", "{work}", "../work", "data/.."])
def test_the_working_folder_is_never_the_output(work, path):
    cfg = compose("data.path=x", f"parameters.output_path={path.format(work=work)}")
    with pytest.raises(ConfigError, match=r"output_path=\S+ (is|contains) the working folder"):
        check(cfg)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("../cache/x.zarr", "Earth2Studio's cache of models"),
        ("../cache", "Earth2Studio's cache of models"),
        ("../hf", "contains Hugging Face's cache"),
        ("../hf/hub/x.zarr", "lies in Hugging Face's cache"),
        (str(CFG.parent), "is the checkout of distinf"),
        # Which contains the working folder as well, if the checkout lies in a temporary folder.
        (str(CFG.parent.parent), "contains the (checkout of distinf|working folder)"),
    ],
)
def test_caches_and_the_checkout_are_never_the_output(work, path, name):
    with pytest.raises(ConfigError, match=name):
        check(compose("data.path=x", f"parameters.output_path={path}"))


def test_a_package_is_never_the_output(work):
    (work / "models/fcn").mkdir(parents=True)
    key = "++diagnostic.wind_decomposition.package=models/fcn"
    for path in ("models", "models/fcn", "models/fcn/x.zarr"):
        with pytest.raises(ConfigError, match=r"diagnostic\.wind_decomposition\.package"):
            check(compose("data.path=x", key, f"parameters.output_path={path}"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("data/in.zarr", "is data.path"),
        ("link.zarr/x.nc", "lies in data.path"),
        ("out.zarr", "is parameters.output_path"),
        ("out.zarr/x.nc", "lies in parameters.output_path"),
    ],
)
def test_the_netcdf_file_is_apart_as_well(work, path, words):
    cfg = compose(
        *("data.path=data/in.zarr", "parameters.output_path=out.zarr", f"output.netcdf={path}")
    )
    with pytest.raises(ConfigError, match=rf"output\.netcdf=\S+ {words}"):
        check(cfg)


def test_the_file_that_netcdf_is_written_to_first_is_apart_too(work):
    (work / "x.nc.part").touch()
    with pytest.raises(ConfigError, match=r"x\.nc\.part.* is data\.path"):
        check(compose("data.path=x.nc.part", "output.netcdf=x.nc"))


def test_an_output_beside_the_input_is_taken(work):
    cfg = compose("data.path=data/in.zarr", "parameters.output_path=data/in.zarr2")
    check_paths(cfg)


def test_a_folder_around_the_working_folder_may_hold_the_output(work):
    check_paths(compose(f"data.path={work}", "parameters.output_path=x.zarr"))
    with pytest.raises(ConfigError, match=r"is data\.path|is the working folder"):
        check_paths(compose(f"data.path={work}", f"parameters.output_path={work}"))


def test_inputs_are_existing_paths_and_urls(work):
    section = {
        "_target_": "data",
        "path": "data/in.zarr",
        "missing": "data/none.zarr",
        "several": ["link.zarr", "s3://bucket/a.nc"],
        "model": "data",
        "deep": {"file": "also"},
        "number": 3,
        "_args_": ["data/in.zarr", 3],
    }
    assert inputs(section, "data") == {
        "data.path": "data/in.zarr",
        "data.several[0]": "link.zarr",
        "data.several[1]": "s3://bucket/a.nc",
        "data.deep.file": "also",
        "data._args_[0]": "data/in.zarr",
    }


def test_caches_follow_the_environment(work, tmp_path, monkeypatch):
    monkeypatch.setenv("EARTH2STUDIO_DATA_CACHE", "/scratch/data")
    assert set(caches().values()) == {
        *(str(tmp_path / "cache"), "/scratch/data", str(tmp_path / "hf/hub"))
    }


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("s3://bucket/a/b.zarr", "s3://bucket/a/b.zarr/"),
        ("S3://bucket/a//b.zarr", "s3a://bucket/a/b.zarr"),
        ("s3://bucket/a/b.zarr", "s3://bucket/a"),
        ("s3://bucket/a", "s3://bucket"),
        ("s3://bucket/a.zarr", "simplecache::s3://bucket/a.zarr"),
        ("https://Host/a/b?token=1", "http://host/a/b"),
        ("gs://bucket/x/../a", "gcs://bucket/a"),
        ("file:///tmp/a/b", "/tmp/a"),
    ],
)
def test_urls_overlap_by_their_parts(inner, outer):
    assert lies_in(inner, outer)


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("s3://bucket/a.zarr2", "s3://bucket/a.zarr"),
        ("s3://bucket/a", "s3://bucket2/a"),
        ("s3://bucket/a", "gs://bucket/a"),
        ("s3://bucket/a", "bucket/a"),
        ("/tmp/ab", "/tmp/a"),
    ],
)
def test_neighbours_do_not_overlap(inner, outer):
    assert not lies_in(inner, outer)
    assert not lies_in(outer, inner)


NAMES = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4)


@given(NAMES, NAMES, st.sampled_from(["s3://bucket/", "/nowhere/"]))
def test_one_lies_in_the_other_as_its_names_begin_with_the_others(inner, outer, root):
    expected = inner[: len(outer)] == outer
    assert lies_in(root + "/".join(inner), root + "//".join(outer) + "/") == expected
