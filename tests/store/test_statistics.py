"""Statistics over members: those of xarray, whoever arrives first, after any interruption."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf import ForecastStore, Output, StoreLayout
from distinf.errors import ConfigError, StoreError
from distinf.options import Statistics
from distinf.statistics import statistic_names, statistics

TIMES = np.array(["2023-06-01", "2023-06-02"], "M8[ns]")
LEADS = np.array([0, 6, 12], "m8[h]").astype("m8[ns]")
LAT, LON = np.linspace(90, -90, 5), np.linspace(0, 360, 8, endpoint=False)
MEMBERS = np.arange(3)
ALL = {
    "mean": True,
    "std": True,
    "min": True,
    "max": True,
    "quantiles": [0.1, 0.5],
    "exceedance": {"tp": [0, 0.5]},
}
FEW = ["mean"]
SHAPE = (3, 2, 3, 2, 5, 8)
VALUES = np.random.default_rng(0).normal(size=SHAPE).astype("f4")
STEPS = list(np.ndindex(SHAPE[:3]))


def grid(*index: int) -> OrderedDict[str, np.ndarray]:
    m, t, step = index or (0, 0, 0)
    return OrderedDict(
        ensemble=MEMBERS[m : m + 1],
        time=TIMES[t : t + 1],
        lead_time=LEADS[step : step + 1],
        variable=np.array(["tp", "t2m"]),
        lat=LAT,
        lon=LON,
    )


@given(number=st.integers(1, 10**9 - 2))
def test_each_threshold_and_level_has_its_own_name(number: int) -> None:
    both = number, number + 1
    levels, thresholds = [n / 10**9 for n in both], [n / 1000 for n in both]
    wanted = Statistics(quantiles=levels, exceedance={"tp": thresholds})
    assert len(statistic_names(wanted, "tp")) == 4


def test_names_of_statistics_are_short() -> None:
    levels = [0.07, 0.29, 0.57, 0.9, 0.999]  # 100 times these is not exact
    wanted = Statistics(quantiles=levels, exceedance={"tp": [0, 0.001, 0.1 + 0.2, 1e-7]})
    names = [name.removeprefix("tp_") for name in statistic_names(wanted, "tp")]
    assert names == [
        *("q7", "q29", "q57", "q90", "q99.9"),
        *("above_0", "above_0.001", "above_0.3", "above_1e-07"),
    ]


def opened(path: Path, **options: Any) -> ForecastStore:
    layout = StoreLayout(TIMES, LEADS, {"rain": grid()}, {"tp": {"units": "m"}}, MEMBERS)
    return ForecastStore(path, layout, Output(**{"statistics": ALL, **options}))


def write(store: ForecastStore, *steps: tuple[int, ...]) -> None:
    for step in steps:
        done: Future[Any] = Future()
        done.set_result((torch.from_numpy(VALUES[step][None, None, None]), grid(*step)))
        store.write("rain", done)


def check(path: Path, steps: Any = slice(None)) -> xr.Dataset:
    """Compare a store's statistics with those of xarray over all members."""
    found = xr.open_zarr(path).load()
    dims = ["ensemble", "time", "lead_time", "variable", "lat", "lon"]
    members = xr.DataArray(VALUES, dims=dims).isel(lead_time=steps)
    for i, name in enumerate(("tp", "t2m")):
        own = members.isel(variable=i)
        ours = {key: found[f"{name}_{key}"].isel(lead_time=steps).values for key in _KEYS}
        np.testing.assert_array_equal(ours["min"], own.min("ensemble"))
        np.testing.assert_array_equal(ours["max"], own.max("ensemble"))
        np.testing.assert_array_max_ulp(ours["mean"], _single(own.astype("f8").mean("ensemble")))
        np.testing.assert_array_max_ulp(
            ours["std"], _single(own.astype("f8").std("ensemble", ddof=1))
        )
        for level in (0.1, 0.5):
            quantile = own.astype("f8").quantile(level, "ensemble")
            np.testing.assert_array_max_ulp(ours[f"q{100 * level:g}"], _single(quantile))
    for threshold in (0, 0.5):
        share = (members.isel(variable=0) > threshold).mean("ensemble")
        above = found[f"tp_above_{threshold:g}"].isel(lead_time=steps)
        np.testing.assert_array_equal(above, _single(share))
    return found


_KEYS = ("mean", "std", "min", "max", "q10", "q50")


def _single(array: xr.DataArray) -> np.ndarray:
    return array.values.astype("f4")


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("c/**/*") if p.is_file()}


@pytest.mark.parametrize("options", [{}, {"members": False}, {"shards": 2}, {"writers": 8}])
def test_they_are_those_of_xarray(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "x.zarr"
    with opened(path, **options) as store:
        write(store, *STEPS)
    found = check(path)
    assert found.rain_statistics_complete.all()
    assert ("ensemble" in found.dims) == options.get("members", True)
    assert ("t2m" in found) == options.get("members", True)
    assert found.tp_mean.attrs["units"] == "m"
    assert found.tp_above_0.attrs["units"] == "1"
    assert found.tp_mean.dims == ("time", "lead_time", "lat", "lon")
    assert not [p for p in path.iterdir() if p.name.endswith("members")]


@settings(max_examples=8)
@given(order=st.permutations(STEPS), keep=st.booleans(), shards=st.sampled_from([None, 2]))
def test_the_order_of_arrival_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, order: Any, keep: bool, shards: int | None
) -> None:
    home = tmp_path_factory.mktemp("order")
    for name, steps in (("a.zarr", STEPS), ("b.zarr", order)):
        with opened(home / name, members=keep, shards=shards, statistics=FEW) as store:
            write(store, *steps)
    assert files(home / "a.zarr") == files(home / "b.zarr")


@pytest.mark.slow
@settings(max_examples=12)
@given(
    first=st.lists(st.sampled_from(STEPS), unique=True),
    keep=st.booleans(),
    shards=st.sampled_from([None, 2]),
    verify=st.booleans(),
)
def test_an_interrupted_store_is_completed(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[Any],
    keep: bool,
    shards: int | None,
    verify: bool,
) -> None:
    home = tmp_path_factory.mktemp("resumed")
    options = {"members": keep, "statistics": FEW}
    with opened(home / "a.zarr", shards=shards, **options) as store:
        write(store, *STEPS)
    with opened(home / "b.zarr", shards=shards, **options) as store:
        write(store, *first)
    with opened(home / "b.zarr", mode="resume", verify=verify, **options) as store:
        missing = [step for step in STEPS if store.marks.lacking(grid(*step))]
        assert sorted(missing) == sorted(set(STEPS) - set(first))
        write(store, *missing)
    assert files(home / "a.zarr") == files(home / "b.zarr")


@pytest.mark.parametrize("keep", [True, False])
def test_a_statistic_is_complete_when_all_members_are(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "x.zarr"
    with opened(path, members=keep) as store:
        write(store, *(step for step in STEPS if step[2] < 2))
        write(store, *(step for step in STEPS if step[2] == 2 and step[0] < 2))
    found = check(path, slice(0, 2))
    assert found.rain_statistics_complete.values.tolist() == [[True, True, False]] * 2
    assert found.tp_mean[:, 2].isnull().all()
    left = [name for name in files(path) if "t2m/c/" in name]
    # Without them, only members of the step that lacks one stay.
    assert len(left) == (16 if keep else 4)


def test_what_a_kill_leaves_is_completed_without_its_members(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    with opened(path) as store:
        write(store, *STEPS)
    before = files(path)
    for name in ("tp_mean/c/0/1/0/0", "rain_statistics_complete/c/0/1"):
        (path / name).unlink()
    with opened(path, mode="resume") as store:
        assert store.marks.counts == (18, 18)
    assert files(path) == before


def test_a_member_that_cannot_be_read_back_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    with opened(path) as store:
        write(store, *STEPS)
    before = files(path)
    (path / "rain_statistics_complete/c/0/1").unlink()
    torn = path / "t2m/c/2/0/1/0/0"
    torn.write_bytes(torn.read_bytes()[:-7])
    with pytest.raises(StoreError, match=r"rain 2023-06-01T00:00 \+6 h: its members cannot be"):
        opened(path, mode="resume")
    with opened(path, mode="resume", verify=True) as store:
        write(store, (2, 0, 1))
    assert files(path) == before


def test_a_damaged_statistic_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    with opened(path, members=False) as store:
        write(store, *STEPS)
    before = files(path)
    torn = path / "tp_mean/c/0/1/0/0"
    torn.write_bytes(torn.read_bytes()[:-7])
    with opened(path, members=False, mode="resume", verify=True) as store:
        missing = [step for step in STEPS if store.marks.lacking(grid(*step))]
        assert missing == [step for step in STEPS if step[1:] == (0, 1)]
        write(store, *missing)
    assert files(path) == before


def test_other_statistics_do_not_continue_a_store(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    with opened(path) as store:
        write(store, *STEPS[:5])
    before = files(path)
    for options in ({"statistics": ["mean"]}, {"members": False}, {"statistics": None}):
        with pytest.raises(StoreError, match="cannot be resumed"):
            opened(path, mode="resume", **options)
    assert files(path) == before


@pytest.mark.parametrize(
    ("statistics", "keep", "words"),
    [
        ({"exceedance": {"t850": [1]}}, True, "t850 is not stored; stored are tp, t2m"),
        (None, False, "choose output.statistics"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    tmp_path: Path, statistics: Any, keep: bool, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        opened(tmp_path / "x.zarr", statistics=statistics, members=keep)
    assert not (tmp_path / "x.zarr").exists()


@given(data=st.data())
def test_a_point_depends_on_no_other(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 40))
    width = data.draw(st.integers(1, 70))
    first = data.draw(st.integers(0, width - 1))
    last = data.draw(st.integers(first + 1, width))
    members = np.random.default_rng(count).normal(300, 20, (count, width)).astype("f4")
    wanted = Statistics(**ALL)
    whole = statistics(wanted, "tp", members)
    for name, part in statistics(wanted, "tp", members[:, first:last]).items():
        np.testing.assert_array_equal(part, whole[name][first:last])


def test_nan_in_one_member_is_nan() -> None:
    members = np.ones((3, 2), "f4")
    members[1, 0] = np.nan
    for name, value in statistics(Statistics(**ALL), "tp", members).items():
        assert np.isnan(value[0]), name
        assert np.isfinite(value[1]), name
