"""What a report reads, and that it is what the store has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from distinf.errors import ConfigError
from distinf.html_report.grid import grid_of
from distinf.html_report.selection import area_mean, choose_variables, make_plan, read_shown
from tests.html_report.stores import write_store

LAT, LON = np.linspace(90, -90, 37), np.arange(0, 360, 10.0)
GRID = {"lat": LAT, "lon": LON}
HOURS = np.timedelta64(3600 * 10**9, "ns")


@given(steps=st.integers(1, 2000), members=st.integers(1, 200), fields=st.integers(0, 3000))
def test_a_plan_reads_no_more_than_it_may(steps: int, members: int, fields: int) -> None:
    plan = make_plan(steps, members, fields, None)
    assert plan.fields <= max(2, fields)
    assert max(plan.map_steps) == max(plan.series_steps) == steps - 1
    for chosen, number in (
        (plan.map_steps, steps),
        (plan.series_steps, steps),
        (plan.map_members, members),
        (plan.series_members, members),
    ):
        assert list(chosen) == sorted(set(chosen))
        assert set(chosen) <= set(range(number))


@given(steps=st.integers(1, 60), members=st.integers(1, 10))
def test_a_small_store_is_shown_whole(steps: int, members: int) -> None:
    plan = make_plan(steps, members, 1300, None)
    assert len(plan.series_steps) == steps
    assert len(plan.map_members) == len(plan.series_members) == members


def test_mean_spread_and_series_are_those_of_the_members(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(280, 9, (5, 2, 7, 37, 36)).astype(np.float32)
    write_store(tmp_path / "x.zarr", {"t2m": values}, GRID, ("lat", "lon"))
    with xr.open_zarr(tmp_path / "x.zarr", chunks=None) as store:
        time = store.time.values[1]
        shown = read_shown(store.t2m, time, np.array([6, 36]) * HOURS, 1e9)
    members = values[:, 1]
    assert shown.steps.tolist() == (np.array([6, 36]) * HOURS).tolist()
    np.testing.assert_allclose(shown.mean, members[:, [1, 6]].mean(0), rtol=1e-6)
    np.testing.assert_allclose(shown.spread, members[:, [1, 6]].std(0, ddof=1), rtol=1e-5)
    # The weights of an equidistant grid are the cosine of the latitude.
    weights = np.broadcast_to(np.cos(np.radians(LAT))[:, None], (37, 36))
    means = (members.astype(float) * weights).sum((-2, -1)) / weights.sum()
    np.testing.assert_allclose(shown.series, means, rtol=1e-5)


def test_a_store_of_times_without_lead_times_is_shown_along_its_times(tmp_path: Path) -> None:
    values = np.arange(9.0)[:, None, None, None] + np.zeros((9, 1, 37, 36))
    write_store(tmp_path / "x.zarr", {"t2m": values}, GRID, ("lat", "lon"))
    with xr.open_zarr(tmp_path / "x.zarr", chunks=None) as store:
        shown = read_shown(store.t2m, None, None, 1e9)
        assert shown.series_steps.tolist() == store.time.values.tolist()
    np.testing.assert_allclose(shown.series, [np.arange(9.0)])


def test_curvilinear_cells_have_the_areas_of_the_same_regular_cells() -> None:
    lat, lon = np.meshgrid(np.linspace(20, 60, 30), np.linspace(0, 50, 40), indexing="ij")
    field = xr.DataArray(
        np.sin(lat), coords={"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}, dims=("y", "x")
    )
    grid = grid_of(field, ())
    assert grid.kind == "curvilinear"
    weights = grid.weights()
    assert weights is not None
    np.testing.assert_allclose(weights / weights[0, 0], np.cos(np.radians(lat)) / 0.9397, rtol=1e-2)


def test_points_that_are_not_written_do_not_count() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.inf]])
    assert area_mean(values, np.array([[1.0, 9.0], [3.0, 9.0]])) == pytest.approx(2.5)
    assert np.isnan(area_mean(values * np.nan, None))


def test_statistics_are_shown_where_the_members_are_not() -> None:
    def array(diagnostic: str) -> xr.DataArray:
        return xr.DataArray(np.zeros(2), dims="x", attrs={"diagnostic": diagnostic})

    statistics = {name: array("model_statistics") for name in ("t2m_mean", "t2m_std")}
    assert choose_variables(xr.Dataset(statistics), None) == ["t2m_mean", "t2m_std"]
    both = xr.Dataset({"t2m": array("model"), **statistics})
    assert choose_variables(both, None) == ["t2m"]
    many = {f"v{i}": array(f"model{i // 5}") for i in range(10)}
    assert choose_variables(xr.Dataset(many), None) == ["v0", "v1", "v2", "v5", "v6", "v7"]


def test_what_the_store_does_not_have_is_named(tmp_path: Path) -> None:
    values = np.zeros((1, 3, 37, 36))
    write_store(tmp_path / "x.zarr", {"t2m": values}, GRID, ("lat", "lon"))
    with xr.open_zarr(tmp_path / "x.zarr", chunks=None) as store:
        with pytest.raises(ConfigError, match=r"report\.variables.*no variable tp; it has t2m"):
            choose_variables(store, ["tp"])
        with pytest.raises(ConfigError, match=r"report\.lead_times.*\+7 h"):
            read_shown(store.t2m, None, np.array([7]) * HOURS, 1e9)
        with pytest.raises(ConfigError, match=r"report\.time.*2001-01-01"):
            read_shown(store.t2m, np.datetime64("2001-01-01", "ns"), None, 1e9)
