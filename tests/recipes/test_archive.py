"""recipe=archive: workers read the states of files and stores, and diagnose them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from testing.application import Outcome
from testing.preloaded import run_main

pytestmark = pytest.mark.timeout(300)
SLOW = pytest.mark.slow
TIMES = np.array(["2023-06-01", "2023-06-02"], "M8[ns]")
LEADS = np.array([0, 6, 12], "m8[h]").astype("m8[ns]")
LAT, LON = np.linspace(90, -90, 17), np.linspace(0, 360, 32, endpoint=False)
NAMES = ["u850", "v850", "t850"]
Start = Callable[..., Outcome]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run the recipe in the test's folder."""

    def start(*overrides: str) -> Outcome:
        return run_main("--config-name=archive", *overrides, folder=tmp_path, deadline=200)

    return start


def fields(**dims: np.ndarray) -> xr.DataArray:
    """Random fields with these dimensions before ``variable``."""
    coords = {**dims, "variable": NAMES, "lat": LAT, "lon": LON}
    values = np.random.default_rng(0).normal(size=[len(c) for c in coords.values()])
    return xr.DataArray(values.astype("f4"), coords, list(coords), "fields")


def speed(state: xr.DataArray) -> np.ndarray:
    """Wind speed as Earth2Studio computes it."""
    import torch

    u, v = (torch.from_numpy(state.sel(variable=name).values.copy()) for name in NAMES[:2])
    return torch.sqrt(u**2 + v**2).numpy()


def opened(folder: Path, name: str = "archive.zarr") -> xr.Dataset:
    return xr.open_zarr(folder / name)


@pytest.mark.parametrize(
    "options",
    [
        ["runtime.nproc=1"],
        pytest.param(["runtime.nproc=3", "output.shards=2"], marks=SLOW),
        pytest.param(["runtime.nproc=3", "output.writer=workers"], marks=SLOW),
    ],
)
def test_all_that_a_store_has_is_diagnosed(start: Start, tmp_path: Path, options: list) -> None:
    made = fields(ensemble=np.array([2, 5]), time=TIMES, lead_time=LEADS)
    made.to_dataset("variable").to_zarr(tmp_path / "in.zarr")
    done = start("data.path=in.zarr", *options)
    assert done.status == 0, done.err
    found = opened(tmp_path)
    assert list(found.ensemble) == [2, 5]
    assert list(found.time.values) == list(TIMES)
    assert list(found.lead_time.values) == list(LEADS)
    np.testing.assert_array_equal(found.ws850, speed(made))
    assert found.wind_speed_complete.all()
    assert "read 12, diagnosed 12" in done.err
    assert "12 of 12 tasks" in done.out


@pytest.mark.parametrize("writer", ["driver", pytest.param("workers", marks=SLOW)])
def test_statistics_take_the_place_of_members(start: Start, tmp_path: Path, writer: str) -> None:
    made = fields(ensemble=np.arange(3), time=TIMES, lead_time=LEADS)
    made.to_dataset("variable").to_zarr(tmp_path / "in.zarr")
    words = ["data.path=in.zarr", f"runtime.nproc={3 if writer == 'workers' else 1}"]
    words += ["output.members=false", f"output.writer={writer}"]
    words.append("output.statistics={mean: true, max: true, exceedance: {ws850: [1]}}")
    done = start(*words)
    assert done.status == 0, done.err
    found = opened(tmp_path)
    expected = speed(made)
    assert sorted(found.data_vars) == [
        *("wind_speed_statistics_complete", "ws850_above_1", "ws850_max", "ws850_mean")
    ]
    np.testing.assert_array_equal(found.ws850_max, expected.max(axis=0))
    np.testing.assert_array_max_ulp(
        found.ws850_mean.values, expected.astype("f8").mean(axis=0).astype("f4")
    )
    assert found.wind_speed_statistics_complete.all()


def test_what_is_named_is_taken_and_more_can_follow(start: Start, tmp_path: Path) -> None:
    made = fields(time=TIMES, lead_time=LEADS)
    made.to_netcdf(tmp_path / "in.nc")
    words = ["data.path=in.nc", "parameters.time=2023-06-02", "runtime.nproc=1"]
    done = start(*words, "parameters.lead_time=6h")
    assert done.status == 0, done.err
    assert opened(tmp_path).ws850.shape == (1, 1, 17, 32)
    done = start(*words, "parameters.lead_time=[0h,12h]", "parameters.output_path=more.zarr")
    assert done.status == 0, done.err
    np.testing.assert_array_equal(opened(tmp_path, "more.zarr").ws850, speed(made[1:, ::2]))


def test_a_folder_of_files_is_one_archive(start: Start, tmp_path: Path) -> None:
    times = TIMES[0] + np.arange(4) * np.timedelta64(6, "h")
    made = fields(time=times)
    (tmp_path / "in").mkdir()
    for i in range(4):
        made[i : i + 1].to_netcdf(tmp_path / "in" / f"{i}.nc")
    done = start("data.path=in", "runtime.nproc=1")
    assert done.status == 0, done.err
    found = opened(tmp_path)
    assert list(found.time.values) == list(times)
    np.testing.assert_array_equal(found.ws850[:, 0], speed(made))


def test_earth2studio_s_sources_are_read(start: Start, tmp_path: Path) -> None:
    made = fields(time=TIMES[:1], lead_time=LEADS)
    made.to_dataset("variable").to_netcdf(tmp_path / "in.nc")
    done = start("data=inference_output", "data.inference_output=in.nc", "runtime.nproc=1")
    assert done.status == 0, done.err
    found = opened(tmp_path)
    assert list(found.time.values) == list(TIMES[0] + LEADS)  # as that source has it
    np.testing.assert_array_equal(found.ws850[:, 0], speed(made)[0])


def test_a_source_that_lists_nothing_needs_its_times(start: Start, tmp_path: Path) -> None:
    words = ["data=random", "data.nlat=17", "data.nlon=32", "runtime.nproc=1"]
    done = start(*words)
    assert done.status == 1
    assert "parameters.time=null: RandomFields does not list its times" in done.err
    assert not (tmp_path / "archive.zarr").exists()
    done = start(*words, "parameters.time=[2023-06-01,2023-06-02]")
    assert done.status == 0, done.err
    assert np.isfinite(opened(tmp_path).ws850).all()


def test_a_time_that_is_missing_is_the_error_of_one_task(start: Start, tmp_path: Path) -> None:
    made = fields(time=TIMES)
    made.to_netcdf(tmp_path / "in.nc")
    words = ["data.path=in.nc", "runtime.nproc=1", "runtime.on_error=skip"]
    done = start(*words, "parameters.time={start: 2023-06-01, end: 2023-06-02, interval: 12h}")
    assert done.status != 0
    assert "wind_speed 2023-06-01T12:00 +0 h" in done.err
    assert "in.nc does not have the times 2023-06-01T12:00" in done.err
    found = opened(tmp_path)
    assert list(found.wind_speed_complete.values.ravel()) == [1, 0, 1]
    np.testing.assert_array_equal(found.ws850[::2, 0], speed(made))


def test_an_incomplete_step_of_a_store_is_not_taken_for_data(start: Start, tmp_path: Path) -> None:
    made = fields(time=TIMES, lead_time=LEADS)
    made.to_dataset("variable").to_zarr(tmp_path / "in.zarr")
    assert start("data.path=in.zarr", "runtime.nproc=1").status == 0
    first = opened(tmp_path).load()
    first.wind_speed_complete[1, 2] = 0
    first.ws850[1, 2] = np.nan
    first = first.rename(ws850="u850")
    first["v850"] = first.u850
    first.drop_encoding().to_zarr(tmp_path / "second.zarr")
    words = ["data.path=second.zarr", "runtime.nproc=1", "parameters.output_path=out.zarr"]
    done = start(*words)
    assert done.status == 1
    assert "u850 is not complete at 2023-06-02T00:00:00.000000000 +12 h" in done.err
    assert np.isfinite(opened(tmp_path, "out.zarr").ws850[:, :2]).all()


@pytest.mark.slow
def test_a_run_goes_on_when_more_files_are_there(start: Start, tmp_path: Path) -> None:
    times = TIMES[0] + np.arange(4) * np.timedelta64(6, "h")
    made = fields(time=times)
    (tmp_path / "in").mkdir()
    words = ["data.path=in", "runtime.nproc=1"]
    words.append("parameters.time={start: 2023-06-01, end: 2023-06-01T18:00, interval: 6h}")
    for i in range(2):
        made[i : i + 1].to_netcdf(tmp_path / "in" / f"{i}.nc")
    assert start(*words).status == 1
    assert list(opened(tmp_path).wind_speed_complete.values.ravel()) == [1, 1, 0, 0]
    for i in range(2, 4):
        made[i : i + 1].to_netcdf(tmp_path / "in" / f"{i}.nc")
    done = start(*words, "output.mode=resume")
    assert done.status == 0, done.err
    assert "2 of 4 tasks to do" in done.out
    np.testing.assert_array_equal(opened(tmp_path).ws850[:, 0], speed(made))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.path=nowhere.nc"], "nowhere.nc does not exist"),
        (["data.path=in.nc", "parameters.ensemble=[3]"], "parameters.ensemble=[3]: the data has"),
        (["data.path=in.nc", "parameters.ensemble=one"], "must be members of the data"),
        (["data.path=in.nc", "parameters.lead_time=6"], "write it like 30min, 6h or 1d"),
        (["data.path=in.nc", "+parameters.nsteps=6"], "parameters.nsteps"),
        (["data.path=in.nc", "output.prognostic_variables=[t850]"], "does not store them again"),
        (["data.path=in.nc", "output.statistics=[mean]"], "has no members"),
        (["data.path=in.nc", "recipe=diagnostic"], "give parameters.nsteps instead"),
        (["data.path=in.nc", "diagnostic.wind_speed.levels=[500]"], "u500"),
    ],
)
def test_wrong_settings_are_one_line(
    start: Start, tmp_path: Path, overrides: list[str], words: str
) -> None:
    fields(time=TIMES).to_netcdf(tmp_path / "in.nc")
    done = start(*overrides, "runtime.nproc=1")
    assert done.status == 1
    assert words in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "archive.zarr").exists()


def test_a_forecast_s_config_is_refused(tmp_path: Path) -> None:
    done = run_main("recipe=archive", folder=tmp_path, deadline=100)
    assert done.status == 1
    assert "give parameters.lead_time instead" in done.err
