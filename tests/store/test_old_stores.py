"""Stores made by earlier versions of distinf: today's code resumes them, as users do."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from distinf.store.provenance import differences
from testing.preloaded import run_main

STORES = Path(__file__).parent.parent / "stores"
GRID = ("runtime.nproc=1", "prognostic.nlat=16", "prognostic.nlon=32", "output.restart_every=1")
# As they were made, but for the path and, of the complete one, further steps.
OVERRIDES = {
    "persistence": (
        *("--config-name=diagnostic", *GRID, "prognostic=persistence"),
        *("prognostic.variable=[u850,v850]", "data=random", "data.nlat=16", "data.nlon=32"),
        *("diagnostic=[wind_speed,wind_decomposition]", "parameters.nsteps=3"),
    ),
    "interrupted": (
        *(*GRID, "+prognostic.dt=60", "diagnostic=wind_decomposition", "parameters.nsteps=5"),
        "output.prognostic_variables=[z850]",
    ),
}


def unpacked(folder, archive, name):
    path = folder / f"{name}.zarr"
    path.mkdir(parents=True)
    zipfile.ZipFile(STORES / f"{archive}.zip").extractall(path)
    return path


def started(folder, name, *more):
    path = f"parameters.output_path={name}.zarr"
    return run_main(*OVERRIDES[name], path, *more, folder=folder)


def forecast(folder, name, *more):
    outcome = started(folder, name, *more)
    assert outcome.status == 0, outcome.err
    with xr.open_zarr(folder / f"{name}.zarr") as ds:
        return ds.load()


def check_resumed(before, resumed, fresh, exact):
    """What was complete keeps its bytes; the rest is as in a fresh run, byte for byte if exact.

    A forecast that goes on from a state which another processor saved differs in the last bits.
    """
    assert set(resumed.variables) == set(fresh.variables)
    for key in (*fresh.coords, *(name for name in fresh if fresh[name].dtype == bool)):
        assert resumed[key].values.tobytes() == fresh[key].values.tobytes(), key
    for key in (name for name in fresh if fresh[name].dtype != bool):
        assert resumed[key].dtype == fresh[key].dtype
        marks = before[f"{fresh[key].attrs['diagnostic']}_complete"][0].values
        done = np.flatnonzero(marks)
        assert 0 < len(done) < fresh.sizes["lead_time"]
        kept, old = (ds[key][:, done].values for ds in (resumed, before))
        assert kept.tobytes() == old.tobytes(), key
        new, own = (np.delete(ds[key].values, done, axis=1) for ds in (resumed, fresh))
        assert not exact or new.tobytes() == own.tobytes(), key
        scale = float(np.abs(fresh[key].values).max())
        np.testing.assert_allclose(resumed[key], fresh[key], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "name", ["persistence", pytest.param("interrupted", marks=pytest.mark.slow)]
)
def test_an_old_store_is_resumed_as_a_new_one(tmp_path, name):
    path = unpacked(tmp_path / "old", name, name)
    (tmp_path / "new").mkdir()
    with xr.open_zarr(path) as ds:
        before = ds.load()
    resumed = forecast(tmp_path / "old", name, "output.mode=resume")
    fresh = forecast(tmp_path / "new", name)
    check_resumed(before, resumed, fresh, exact=name == "persistence")
    assert all(resumed[name].all() for name in resumed if name.endswith("_complete"))
    assert not (path / ".distinf.restart").exists()


def test_a_store_of_the_explicit_scheme_is_refused_and_kept(tmp_path):
    """The shallow-water model had Adams-Bashforth time steps when this store was interrupted."""
    path = unpacked(tmp_path, "explicit_scheme", "interrupted")

    def content():
        return {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and "lock" not in p.name}

    before = content()
    outcome = started(tmp_path, "interrupted", "output.mode=resume")
    assert outcome.status == 1
    assert "the scheme of distinf.models.ShallowWater" in outcome.err
    assert "that of an earlier version of distinf, this run ETDRK4-B" in outcome.err
    assert content() == before


def test_a_target_that_moved_is_the_same_setting():
    old = {"data": {"_target_": "distinf.fields.RandomFields", "nlat": 16}}
    new = {"data": {"_target_": "distinf.models.RandomFields", "nlat": 16}}
    assert not list(differences(old, new))
    other = {"data": {"_target_": "distinf.models.FileSource", "nlat": 16}}
    assert [key for key, _, _ in differences(old, other)] == ["data._target_"]
