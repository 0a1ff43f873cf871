from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from distinf.errors import ConfigError
from distinf.models.fields import FileSource, RandomFields, global_grid
from tests import s3_server

TIMES = np.array(["2023-06-01T00", "2023-06-01T06", "2023-06-01T12"], "datetime64[ns]")
LEADS = np.array([0, 6, 12], "timedelta64[h]").astype("timedelta64[ns]")


def array(**coords: object) -> xr.DataArray:
    grid = {**coords, **global_grid(5, 8)}
    shape = [len(axis) for axis in grid.values()]
    data = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return xr.DataArray(data, grid, list(grid))


def test_grids_are_those_of_the_models() -> None:
    grid = global_grid(721, 1440)
    np.testing.assert_array_equal(grid["lat"], np.linspace(90, -90, 721))
    np.testing.assert_array_equal(grid["lon"], np.arange(1440) / 4)
    assert global_grid(720, 1440)["lat"][-1] == -89.75


@pytest.mark.parametrize("kind", ["nc", "zarr"])
@pytest.mark.parametrize("layout", ["one array", "an array each"])
def test_an_analysis_is_asked_for_the_valid_time(kind: str, layout: str, tmp_path: Path) -> None:
    fields = array(time=TIMES, variable=["t2m", "u10m"])
    data = (
        fields.to_dataset("variable") if layout == "an array each" else fields.to_dataset(name="f")
    )
    path = str(tmp_path / f"a.{kind}")
    data.to_zarr(path) if kind == "zarr" else data.to_netcdf(path)
    source = FileSource(path)
    assert sorted(source.variables) == ["t2m", "u10m"]
    got = source(TIMES[:2], LEADS[:2], np.array(["u10m", "t2m"]))
    assert got.dims == ("time", "lead_time", "variable", "lat", "lon")
    for i in range(2):
        for j in range(2):
            expected = fields.sel(time=TIMES[i] + LEADS[j], variable=["u10m", "t2m"])
            np.testing.assert_array_equal(got.values[i, j], expected.values)


def test_a_forecast_is_asked_for_time_and_lead_time(tmp_path: Path) -> None:
    fields = array(time=TIMES[:1], lead_time=LEADS)
    marks = xr.DataArray(np.ones((1, 3), bool), dims=["time", "lead_time"])
    xr.Dataset({"t2m": fields, "t2m_complete": marks}).to_zarr(tmp_path / "f.zarr")
    source = FileSource(str(tmp_path / "f.zarr"))
    assert source.variables == ["t2m"]
    got = source(TIMES[:1], LEADS[1:], ["t2m"])
    np.testing.assert_array_equal(got.values[:, :, 0], fields.values[:, 1:])


def test_longitudes_from_minus_180_are_turned(tmp_path: Path) -> None:
    fields = array(time=TIMES[:1])
    turned = fields.assign_coords(lon=(fields.lon + 180) % 360 - 180).sortby("lon")
    turned.to_dataset(name="t2m").to_netcdf(tmp_path / "t.nc")
    got = FileSource(str(tmp_path / "t.nc"))(TIMES[:1], LEADS[:1], ["t2m"])
    np.testing.assert_array_equal(got["lon"], fields["lon"])
    np.testing.assert_array_equal(got.values[0, 0, 0], fields.values[0])


@given(order=st.permutations(["time", "lead_time", "ensemble", "lat", "lon"]))
def test_the_order_of_dimensions_is_that_of_the_models(
    tmp_path_factory: pytest.TempPathFactory, order: list[str]
) -> None:
    made = array(ensemble=np.arange(2), time=TIMES, lead_time=LEADS)
    path = str(tmp_path_factory.mktemp("order") / "x.nc")
    made.transpose(*order).to_dataset(name="t2m").to_netcdf(path)
    got = FileSource(path).member(1)(TIMES[:2], LEADS[1:], ["t2m"])
    assert got.dims == ("time", "lead_time", "variable", "lat", "lon")
    np.testing.assert_array_equal(got.values[:, :, 0], made.values[1, :2, 1:])


def test_a_curvilinear_grid_has_its_own_dimensions(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype("f4")
    grid = {"lat": (("y", "x"), np.ones((4, 5))), "lon": (("y", "x"), np.ones((4, 5)))}
    made = xr.DataArray(values, {"time": TIMES, **grid}, ["time", "y", "x"])
    turned = made.transpose("x", "time", "y", transpose_coords=False)
    turned.to_dataset(name="t2m").to_netcdf(tmp_path / "x.nc")
    got = FileSource(str(tmp_path / "x.nc"))(TIMES, LEADS[:1], ["t2m"])
    np.testing.assert_array_equal(got.values[:, 0, 0], values)


def test_a_store_in_a_bucket_is_read_by_its_url(tmp_path: Path) -> None:
    made = array(time=TIMES, lead_time=LEADS)
    with s3_server.s3("fields") as bucket:
        made.to_dataset(name="t2m").to_zarr(f"{bucket}/forecast.zarr")
        got = FileSource(f"{bucket}/forecast.zarr")(TIMES[:2], LEADS[1:], ["t2m"])
        np.testing.assert_array_equal(got.values[:, :, 0], made.values[:2, 1:])
        with pytest.raises(ConfigError, match=f"{bucket}/none.zarr cannot be read"):
            FileSource(f"{bucket}/none.zarr")


def test_what_a_file_does_not_have_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with pytest.raises(ConfigError, match=rf"{path} does not exist"):
        FileSource(str(path))
    path.write_text("no file of fields")
    with pytest.raises(ConfigError, match=rf"{path} cannot be read"):
        FileSource(str(path))
    array(time=TIMES).to_dataset(name="t2m").to_netcdf(tmp_path / "b.nc")
    source = FileSource(str(tmp_path / "b.nc"))
    with pytest.raises(ConfigError, match="does not have the variables q500; it has t2m"):
        source(TIMES, LEADS[:1], ["t2m", "q500"])
    with pytest.raises(ConfigError, match="does not have the times 2023-06-01T18"):
        source(TIMES, LEADS[1:2], ["t2m"])
    with pytest.raises(ConfigError, match="does not have the times 2020"):
        source.check_time(np.datetime64("2020-01-01", "ns"))


def test_random_fields_depend_on_seed_time_and_variable_alone() -> None:
    source = RandomFields(5, 8)
    both = source(TIMES[:2], ["t2m", "u10m"])
    np.testing.assert_array_equal(source(TIMES[1], "u10m").values[0, 0], both.values[1, 1])
    assert len(np.unique(both.values)) == both.size
    assert (RandomFields(5, 8, seed=1)(TIMES[0], "t2m").values != both.values[0, 0]).all()
    source(np.datetime64("1950-01-01"), "t2m")  # before the epoch


@pytest.mark.parametrize(
    ("dim", "units", "per_hpa"),
    [
        ("pressure_level", "hPa", 1),
        ("plev", "Pa", 100),
        ("level", "millibars", 1),
        ("level", None, 1),
    ],
)
def test_levels_of_pressure_have_earth2studio_s_names(
    tmp_path: Path, dim: str, units: str | None, per_hpa: int
) -> None:
    levels = np.array([850.0, 500.0]) * per_hpa
    lat, lon = np.linspace(90, -90, 5), np.linspace(0, 360, 8, endpoint=False)
    axes = {"valid_time": [np.datetime64("2023-06-01", "ns")], dim: levels}
    coords = {**axes, "latitude": lat, "longitude": lon}
    values = np.random.default_rng(0).normal(size=[len(c) for c in coords.values()])
    u = xr.DataArray(values.astype("f4"), coords, list(coords))
    if units:
        u[dim].attrs["units"] = units
    u10 = u[:, 0].drop_vars(dim).assign_attrs(long_name="10 metre U wind component")
    xr.Dataset({"u": u, "u10": u10}).to_netcdf(tmp_path / "x.nc")
    source = FileSource(str(tmp_path / "x.nc"))
    assert source.variables == ["u850", "u500", "u10m"]
    state = source(np.datetime64("2023-06-01", "ns"), [np.timedelta64(0, "h")], ["u500", "u10m"])
    np.testing.assert_array_equal(state.values[0, 0], values.astype("f4")[0, [1, 0]])


@pytest.mark.parametrize(
    "attributes",
    [
        {"long_name": "model_level_number"},  # as in older files of the Climate Data Store
        {"units": "1"},
        {"units": "m", "long_name": "height above the ground"},
        {"standard_name": "atmosphere_hybrid_sigma_coordinate"},
    ],
)
def test_other_levels_are_no_pressures(tmp_path: Path, attributes: dict[str, str]) -> None:
    t = array(time=TIMES, level=np.array([100, 137]))
    t.level.attrs.update(attributes)
    xr.Dataset({"t": t, "t2m": t[:, 0].drop_vars("level")}).to_netcdf(tmp_path / "x.nc")
    assert FileSource(str(tmp_path / "x.nc")).variables == ["t2m"]
    t.to_dataset(name="t").to_netcdf(tmp_path / "t.nc")
    with pytest.raises(ConfigError, match=r"t\.nc has no field on levels of pressure"):
        FileSource(str(tmp_path / "t.nc"))


def test_levels_in_pa_without_units_are_no_hpa(tmp_path: Path) -> None:
    t = array(time=TIMES, level=np.array([85000, 100]))
    t.to_dataset(name="t").to_netcdf(tmp_path / "t.nc")
    with pytest.raises(ConfigError, match="has no field on levels of pressure"):
        FileSource(str(tmp_path / "t.nc"))


WINDS = {
    ("u10", "10 metre U wind component"): "u10m",
    ("v100", "100 metre V wind component"): "v100m",
    ("u100", "100m_u_component_of_wind"): "u100m",
    ("u100", "u-component of wind at 100 hPa (m s-1)"): "u100",
    ("u10", "wind at 100 m"): "u10",
    ("v10", None): "v10",
    ("u100m", None): "u100m",
    ("u850", "10 metre wind"): "u850",
}


@pytest.mark.parametrize(("name", "long_name"), WINDS)
def test_a_wind_is_at_metres_if_it_says_so(
    tmp_path: Path, name: str, long_name: str | None
) -> None:
    field = array(time=TIMES).assign_attrs({"long_name": long_name} if long_name else {})
    field.to_dataset(name=name).to_netcdf(tmp_path / "x.nc")
    assert FileSource(str(tmp_path / "x.nc")).variables == [WINDS[name, long_name]]


def test_two_fields_of_one_name_are_refused(tmp_path: Path) -> None:
    levels = array(time=TIMES, level=np.array([100, 850]))
    data = xr.Dataset({"u": levels, "u100": array(time=TIMES), "u100m": array(time=TIMES)})
    data[["u100", "u100m"]].to_netcdf(tmp_path / "both.nc")
    assert FileSource(str(tmp_path / "both.nc")).variables == ["u100", "u100m"]
    data.to_netcdf(tmp_path / "x.nc")
    with pytest.raises(ConfigError, match=r"x\.nc has two fields u100"):
        FileSource(str(tmp_path / "x.nc"))


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_one_step_of_a_forecast_is_no_analysis(tmp_path: Path, kind: str) -> None:
    """As cfgrib's to_netcdf leaves a file of one forecast step, or of one initial time."""
    made = array(time=TIMES, step=LEADS, isobaricInhPa=np.array([850.0]))
    made = made.assign_coords(valid_time=made.time + made.step)
    for name, part, times, leads in (
        ("step", made[:, 1, 0], TIMES, LEADS[1:2]),
        ("time", made[1, :, 0], TIMES[1:2], LEADS),
        ("both", made[1, 1, 0], TIMES[1:2], LEADS[1:2]),
    ):
        path = str(tmp_path / f"{name}.{kind}")
        data = xr.Dataset({"u": part, "t2m": part})
        data.to_zarr(path) if kind == "zarr" else data.to_netcdf(path)
        source = FileSource(path)
        assert source.variables == ["t2m", "u850"]
        got = source(times, leads, ["u850"])
        np.testing.assert_array_equal(got.values.ravel(), part.values.ravel())
        with pytest.raises(ConfigError, match="does not have the lead times"):
            source(times, [np.timedelta64(18, "h")], ["u850"])


def test_a_forecast_by_its_valid_time_is_read_there(tmp_path: Path) -> None:
    made = array(valid_time=TIMES).assign_coords(time=TIMES[0] - LEADS[1], step=LEADS[1])
    made.to_dataset(name="t2m").to_netcdf(tmp_path / "x.nc")
    got = FileSource(str(tmp_path / "x.nc"))(TIMES[1:2], LEADS[:1], ["t2m"])
    np.testing.assert_array_equal(got.values[0, 0, 0], made.values[1])


def test_a_member_is_read_beside_statistics_over_members(tmp_path: Path) -> None:
    made = array(ensemble=np.array([0, 4]), time=TIMES, lead_time=LEADS)
    xr.Dataset({"t2m": made, "t2m_mean": made.mean("ensemble")}).to_netcdf(tmp_path / "x.nc")
    source = FileSource(str(tmp_path / "x.nc"))
    with pytest.raises(ConfigError, match="has an ensemble"):
        source(TIMES[:1], LEADS[:1], ["t2m_mean", "t2m"])
    state = source.member(4)(TIMES[1:2], LEADS[:1], ["t2m_mean", "t2m"])
    np.testing.assert_array_equal(state.values[0, 0, 1], made.values[1, 1, 0])
    with pytest.raises(ConfigError, match="does not have the members 3"):
        source.member(3)
