"""output.verification: scores against data, those of an independent library."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import xskillscore
from hypothesis import given
from hypothesis import strategies as st

from distinf.errors import ConfigError
from distinf.models import Scores
from distinf.statistics import crps
from testing.application import Outcome
from testing.preloaded import run_main

pytestmark = pytest.mark.timeout(300)
SLOW = pytest.mark.slow
TIMES = np.array(["2023-06-01", "2023-06-02"], "M8[ns]")
LEADS = np.array([0, 6, 12], "m8[h]").astype("m8[ns]")
VALID = np.unique((TIMES[:, None] + LEADS).ravel())
LAT, LON = np.linspace(90, -90, 17), np.linspace(0, 360, 32, endpoint=False)
FINER = np.linspace(90, -90, 33)  # has the rows of LAT
Start = Callable[..., Outcome]
DATA = ["+output.verification.data._target_=distinf.models.FileSource"]
DATA.append("+output.verification.data.path=truth.nc")


def fields(names: list[str], **dims: np.ndarray) -> xr.DataArray:
    """Random fields with these dimensions before ``variable``."""
    coords = {**dims, "variable": names, "lat": LAT, "lon": LON}
    values = np.random.default_rng(len(dims)).normal(size=[len(c) for c in coords.values()])
    return xr.DataArray(values.astype("f4"), coords, list(coords), "fields")


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run the archive recipe on three members in a folder with what they are compared with."""
    made = fields(["u850", "v850"], ensemble=np.arange(3), time=TIMES, lead_time=LEADS)
    made.to_dataset("variable").to_zarr(tmp_path / "in.zarr")
    truth = fields(["ws850", "t850"], time=VALID).interp(lat=FINER).astype("f4")
    truth.to_dataset("variable").to_netcdf(tmp_path / "truth.nc")

    def start(*overrides: str, verification: list[str] = DATA) -> Outcome:
        words = ["--config-name=archive", "data.path=in.zarr", *verification, *overrides]
        if not any(word.startswith("runtime.nproc") for word in words):
            words.append("runtime.nproc=1")
        return run_main(*words, folder=tmp_path, deadline=200)

    return start


def check(found: xr.Dataset, forecast: xr.DataArray, truth: xr.DataArray, name: str) -> None:
    """Compare the scores of a variable, also the CRPS, with those of xskillscore."""
    forecast = forecast.astype("f8").drop_vars("variable", errors="ignore")
    valid = xr.DataArray(
        forecast.time.values[:, None] + forecast.lead_time.values, dims=["time", "lead_time"]
    )
    there = truth.astype("f8").sel(time=valid, lat=forecast.lat)
    there = there.drop_vars("time").assign_coords(time=forecast.time)
    weights = np.cos(np.deg2rad(forecast.lat)).clip(0).broadcast_like(there[0, 0])
    weights = weights.drop_vars(["time", "lead_time"], errors="ignore")
    area = {"dim": ["lat", "lon"], "weights": weights}
    point = xskillscore.crps_ensemble(there, forecast, member_dim="ensemble", dim=[])
    expected = {
        "rmse": xskillscore.rmse(forecast, there, **area),
        "bias": xskillscore.me(forecast, there, **area),
        "crps": point.weighted(weights).mean(["lat", "lon"]),
    }
    for score, values in expected.items():
        ours = found[f"{name}_{score}"]
        assert ours.dims == values.dims
        np.testing.assert_allclose(ours, values, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        [],
        pytest.param(["runtime.nproc=3", "output.shards=2"], marks=SLOW),
        pytest.param(["runtime.nproc=3", "output.writer=workers"], marks=SLOW),
    ],
)
def test_scores_are_those_of_xskillscore(start: Start, tmp_path: Path, options: list[str]) -> None:
    done = start(*options)
    assert done.status == 0, done.err
    found = xr.open_zarr(tmp_path / "archive.zarr").load()
    truth = xr.open_dataset(tmp_path / "truth.nc")
    check(found, found.ws850, truth.ws850, "ws850")
    assert found.ws850_rmse.attrs["units"] == found.ws850_crps.attrs["units"] == "m s-1"
    assert found.wind_speed_scores_complete.all()
    assert found.wind_speed_crps_complete.all()
    assert "t850_rmse" not in found


@pytest.mark.slow
def test_scores_can_take_the_place_of_fields(start: Start, tmp_path: Path) -> None:
    words = ["output.members=false", "output.statistics=[mean]"]
    assert start().status == 0
    beside = xr.open_zarr(tmp_path / "archive.zarr").load()
    done = start(*words, "parameters.output_path=b.zarr")
    assert done.status == 0, done.err
    found = xr.open_zarr(tmp_path / "b.zarr").load()
    names = ("wind_speed_crps_complete", "wind_speed_statistics_complete")
    assert sorted(found) == [*names, "ws850_crps", "ws850_mean"]
    np.testing.assert_array_equal(found.ws850_crps, beside.ws850_crps)
    done = start(*words, "parameters.output_path=b.zarr", "output.mode=resume")
    assert done.status == 0, done.err
    assert "0 of 18 tasks to do" in done.out
    done = start("parameters.output_path=b.zarr", "output.mode=resume", *words, verification=[])
    assert done.status != 0
    assert "output.verification" in done.err


@pytest.mark.slow
def test_what_is_renamed_keeps_its_new_name(start: Start, tmp_path: Path) -> None:
    done = start("diagnostic.wind_speed.rename={ws850: speed}")
    assert done.status == 0, done.err
    found = xr.open_zarr(tmp_path / "archive.zarr").load()
    check(found, found.speed, xr.open_dataset(tmp_path / "truth.nc").ws850, "speed")


def test_the_forecasts_own_variables_are_scored(tmp_path: Path) -> None:
    fields(["u850", "v850", "ws850"], time=VALID).to_dataset("variable").to_netcdf(
        tmp_path / "truth.nc"
    )
    words = [
        *("prognostic=persistence", "prognostic.variable=[u850,v850]", "data=file"),
        *("prognostic.nlat=17", "prognostic.nlon=32", "prognostic.step=6"),
    ]
    done = run_main(
        *(
            "--config-name=diagnostic",
            "diagnostic=wind_speed",
            "parameters.nsteps=2",
            "parameters.time=2023-06-01",
        ),
        *(*words, "data.path=truth.nc", "output.prognostic_variables=[u850]"),
        *(*DATA, "output.region={lat: [0, 90]}", "runtime.nproc=2"),
        *("parameters.output_path=out.zarr",),
        folder=tmp_path,
        deadline=200,
    )
    assert done.status == 0, done.err
    found = xr.open_zarr(tmp_path / "out.zarr").load()
    assert found.u850.sizes["lat"] == 9  # the scores are of the whole grid
    truth = xr.open_dataset(tmp_path / "truth.nc")
    for name in ("u850", "ws850"):
        assert found[f"{name}_rmse"].dims == ("time", "lead_time")
    assert float(found.u850_rmse[0, 0]) == 0.0
    error = (truth.u850.isel(time=0) - truth.u850.isel(time=1)).astype("f8")
    weights = np.cos(np.deg2rad(truth.lat)).clip(0)
    expected = np.sqrt((error**2).weighted(weights).mean())
    np.testing.assert_allclose(found.u850_rmse[0, 1], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "verification", "told"),
    [
        (["+output.verification.dat=1"], DATA, "output.verification.dat does not exist"),
        (["+output.verification.variables=[x]"], DATA, "x is neither a result"),
        ([], ["+output.verification.variables=[x]"], "must be a mapping such as {data:"),
        (["data.path=coarse.zarr"], DATA, "has no lon 5.625"),
        (["parameters.time=2023-06-03"], DATA, "2023-06-03"),
        ([], [DATA[0], "+output.verification.data.path=in.zarr"], "ws850"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    start: Start, tmp_path: Path, words: list[str], verification: list[str], told: str
) -> None:
    finer = np.linspace(0, 360, 64, endpoint=False)
    made = fields(["u850", "v850"], time=TIMES, lead_time=LEADS).interp(
        lon=finer, kwargs={"fill_value": "extrapolate"}
    )
    made.astype("f4").to_dataset("variable").to_zarr(tmp_path / "coarse.zarr")
    done = start(*words, verification=verification)
    assert done.status != 0
    assert told in done.err
    assert not (tmp_path / "archive.zarr").exists()


def state(values: np.ndarray) -> tuple[torch.Tensor, OrderedDict[str, np.ndarray]]:
    coords: OrderedDict[str, np.ndarray] = OrderedDict(
        time=VALID[:1], lead_time=LEADS[:1], variable=np.array(["t850"]), lat=LAT, lon=LON
    )
    return torch.from_numpy(values.astype("f4"))[None, None, None], coords


@given(offset=st.floats(-1e3, 1e3, width=32))
def test_a_constant_error_is_rmse_and_bias(
    tmp_path_factory: pytest.TempPathFactory, offset: float
) -> None:
    truth = fields(["t850"], time=VALID[:1])
    path = tmp_path_factory.getbasetemp() / "constant.nc"
    if not path.exists():
        truth.to_netcdf(path)
    model = Scores({"_target_": "distinf.models.FileSource", "path": str(path)})
    y, coords = model(*state(truth.values[0, 0].astype("f8") + offset))
    assert list(coords["variable"]) == ["t850_rmse", "t850_bias"]
    np.testing.assert_allclose(y.numpy()[0, 0], [abs(offset), offset], rtol=1e-3, atol=1e-6)


def test_the_earth_is_weighted_by_area(tmp_path: Path) -> None:
    truth = fields(["t850"], time=VALID[:1])
    truth.to_netcdf(tmp_path / "truth.nc")
    model = Scores({"_target_": "distinf.models.FileSource", "path": str(tmp_path / "truth.nc")})
    values = truth.values[0, 0].copy()
    values[[0, -1]] += 100  # the poles have no area
    y, _ = model(*state(values))
    assert y.abs().max() < 1e-6
    values[3, 3] = np.nan
    assert model(*state(values))[0].isnan().all()


class Turned:
    """A data source with longitude before latitude."""

    def __call__(self, time: Any, variable: Any) -> xr.DataArray:
        """Return the same fields at any time."""
        made = fields(list(variable), time=np.atleast_1d(time))
        return made.transpose("time", "variable", "lon", "lat")


def test_the_order_of_latitude_and_longitude_does_not_matter(tmp_path: Path) -> None:
    truth = fields(["t850"], time=VALID[:1])
    truth.transpose("time", "variable", "lon", "lat").to_netcdf(tmp_path / "turned.nc")
    path = str(tmp_path / "turned.nc")
    model = Scores({"_target_": "distinf.models.FileSource", "path": path})
    assert not model(*state(truth.values[0, 0]))[0].any()
    model = Scores({"_target_": f"{__name__}.Turned"})
    with pytest.raises(ConfigError, match="needs the dimensions lat, lon in this order"):
        model(*state(truth.values[0, 0]))


def test_fields_without_a_grid_are_refused() -> None:
    coords: Any = OrderedDict(time=VALID[:1], lead_time=LEADS[:1], variable=np.array(["x"]))
    with pytest.raises(ConfigError, match="no lat and lon to compare"):
        Scores({"_target_": "distinf.models.FileSource"}).output_coords(coords)


def test_a_missing_value_gives_no_crps() -> None:
    members = np.array([[1.0, np.nan], [2.0, 2.0]], "f4")
    found = crps(members, np.array([1.0, 1.0], "f4"))
    assert found[0] == pytest.approx(0.25)
    assert np.isnan(found[1])
