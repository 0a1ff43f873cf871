"""How forecasts are shared out to drivers, without processes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distinf.drivers import driver_ranks, number_of_blocks, spread
from distinf.forecast.batching import Block, blocks


def run_of(dates: int, members: int | None, batch: int, drivers: int | str = 1) -> SimpleNamespace:
    times = np.datetime64("2023-06-01", "ns") + np.arange(dates) * np.timedelta64(1, "D")
    return SimpleNamespace(
        times=times, members=members, runtime=SimpleNamespace(batch=batch, drivers=drivers)
    )


@given(st.integers(1, 30), st.none() | st.integers(1, 30), st.integers(1, 40))
def test_the_number_of_blocks_is_that_of_the_blocks(
    dates: int, members: int | None, batch: int
) -> None:
    run = run_of(dates, members, batch)
    cases = Block(run.times, None if members is None else np.arange(members), 1)
    assert number_of_blocks(run) == len(blocks(cases, batch))


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))))
def test_drivers_are_spread_evenly(numbers: tuple[int, int]) -> None:
    wanted, ranks = numbers
    chosen = spread(wanted, ranks)
    assert chosen[0] == 0
    assert len(set(chosen)) == wanted
    assert max(chosen) < ranks
    gaps = np.diff([*chosen, ranks])
    assert gaps.max() - gaps.min() <= 1


def test_there_are_no_more_drivers_than_forecasts() -> None:
    assert driver_ranks(run_of(1, 2, 1, drivers=4), 4) == [0, 2]
    assert driver_ranks(run_of(1, 8, 1, drivers=4), 4) == [0, 1, 2, 3]
    assert driver_ranks(run_of(1, 8, 1, drivers="auto"), 4) == [0]
