"""Which pairs there are, who reads which, and that nobody reads more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from distinf.errors import ConfigError
from distinf.training import Pairs, TrainingRun, read_training, share, split
from tests.training import stores

DAYS = st.lists(st.integers(0, 9), min_size=1, max_size=60)


def times_of(days: list[int]) -> np.ndarray:
    return (np.datetime64("2023-06-01") + np.array(days, "m8[D]")).astype("M8[ns]")


def run_of(path: str | list[str], **data: object) -> TrainingRun:
    own = {"path": path, "inputs": ["u850", "v850"], "target": "ke", "held_out": "2023-06-04"}
    return read_training(
        {
            "parameters": {"output_path": "out"},
            "data": {**own, **data},
            "network": {"_target_": "physicsnemo.models.fno.FNO"},
        }
    )


@given(DAYS, st.data())
def test_pairs_of_one_time_are_on_one_side(days: list[int], data: st.DataObject) -> None:
    times = times_of(days)
    held_out = times_of(data.draw(st.lists(st.sampled_from(days), min_size=1, unique=True)))
    if set(held_out) == set(times):
        with pytest.raises(ConfigError, match="holds out every initial time"):
            split(times, held_out)
        return
    training, validation = split(times, held_out)
    assert sorted([*training, *validation]) == list(range(len(days)))
    assert not set(times[training]) & set(times[validation])
    assert set(times[validation]) == set(held_out)


def test_a_time_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data.held_out=2023-06-09T00:00: the data does not"):
        split(times_of([0, 1]), times_of([8]))


@given(st.integers(1, 8), st.integers(0, 60), st.integers(0, 3))
def test_each_pair_is_in_one_rank_s_share(size: int, more: int, seed: int) -> None:
    indices = list(range(100, 100 + size + more))
    shares = [share(indices, rank, size, seed) for rank in range(size)]
    counted = [index for _, own in shares for index in own]
    assert sorted(counted) == indices
    assert len({len(pairs) for pairs, _ in shares}) == 1  # ranks step together
    assert sum(len(pairs) for pairs, _ in shares) - len(indices) < size
    for pairs, own in shares:
        assert set(own) <= set(pairs) <= set(indices)
        assert set(pairs) == set(share(indices, shares.index((pairs, own)), size, seed)[0])


def test_a_rank_reads_no_chunk_of_another_one_s_pairs(tmp_path: Path) -> None:
    stores.make(tmp_path)
    pairs = Pairs(run_of(str(tmp_path / "in.zarr")))
    assert len(pairs) == 2 * 4 * 3
    expected = xr.open_zarr(tmp_path / "in.zarr").load()
    mine = share(range(len(pairs)), 1, 3, seed=0)[0]
    kept = {tuple(pairs.all[i].step.values()) for i in mine}
    for i, pair in enumerate(pairs.all):
        if tuple(pair.step.values()) in kept:
            continue
        member, time, lead = np.unravel_index(i, (2, 4, 3))
        for name in ("u850", "v850", "ke"):
            chunk = tmp_path / "in.zarr" / name / f"c/{member}/{time}/{lead}/0/0"
            assert chunk.is_file()
            chunk.write_bytes(b"no chunk")
    for i in mine:
        x, y = pairs[i]
        there = expected.sel(pairs.all[i].step)
        np.testing.assert_array_equal(x, np.stack([there.u850, there.v850]))
        np.testing.assert_array_equal(y[0], there.ke)
    lost = next(i for i in range(len(pairs)) if i not in mine)
    with pytest.raises(Exception, match=r"."):
        pairs[lost]  # so whoever reads such a chunk fails


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    made = stores.dataset()
    made.ke[1, 2, 0, 3, 3] = np.nan
    made.to_zarr(tmp_path / "in.zarr")
    pairs = Pairs(run_of(str(tmp_path / "in.zarr")))
    words = "ke at ensemble 1 time 2023-06-03.*: NaN or infinite values cannot be learnt"
    with pytest.raises(ConfigError, match=words):
        pairs[12 + 6]


def test_memory_is_limited(tmp_path: Path) -> None:
    stores.make(tmp_path)
    run = run_of(str(tmp_path / "in.zarr"))
    pairs = Pairs(run)
    one = 3 * len(stores.LAT) * len(stores.LON) * 4
    pairs._memory = 5 * one
    for i in range(len(pairs)):
        pairs[i]
    assert len(pairs._kept) == 5


def test_targets_may_lie_elsewhere_and_stores_follow_one_another(tmp_path: Path) -> None:
    made = stores.make(tmp_path, "a.zarr")
    later = stores.TIMES + np.timedelta64(30, "D")
    stores.make(tmp_path, "b.zarr", seed=1, times=later)
    made[["ke"]].isel(ensemble=slice(None, None, -1)).to_netcdf(tmp_path / "a.nc")
    path = [str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr")]
    pairs = Pairs(run_of(path, target_path=[str(tmp_path / "a.nc"), path[1]]))
    assert sorted(set(pairs.times)) == [*stores.TIMES, *later]
    for i in (0, 5, 40):
        x, y = pairs[i]
        np.testing.assert_allclose(y[0], (x.square().sum(dim=0) / 2), rtol=1e-5)
    assert pairs.attributes["ke"]["units"] == "m2 s-2"


def test_an_incomplete_store_is_refused(tmp_path: Path) -> None:
    made = stores.dataset()
    made.ke.attrs["diagnostic"] = "energy"
    marks = np.ones((2, 4, 3), bool)
    made["energy_complete"] = (("ensemble", "time", "lead_time"), marks)
    marks[1, 2, 0] = False
    made.to_zarr(tmp_path / "in.zarr")
    with pytest.raises(ConfigError, match=r"data.target=ke is not complete in .*=resume"):
        Pairs(run_of(str(tmp_path / "in.zarr")))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"inputs": ["u500"]}, "data.inputs: .*in.zarr does not have u500; it has "),
        ({"target": "tp"}, "data.target: .*in.zarr does not have tp"),
        ({"path": "nowhere.zarr"}, "data.path=nowhere.zarr cannot be read"),
        ({"target_path": "{}/coarse.nc"}, "lies on another lat"),
        ({"target_path": "{}/fewer.nc"}, "ke does not have each time of u850"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, data: dict, words: str) -> None:
    made = stores.make(tmp_path)
    made.isel(lat=slice(None, None, 2)).to_netcdf(tmp_path / "coarse.nc")
    made.isel(time=slice(2)).to_netcdf(tmp_path / "fewer.nc")
    own = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in data.items()}
    with pytest.raises(ConfigError, match=words):
        Pairs(run_of(own.pop("path", str(tmp_path / "in.zarr")), **own))
