"""When a run ends: not before the pace is known, and by the pace of now."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distinf.report.ending import Ending

START = 1_700_000_000.0


def ending_of(times):
    ending = Ending()
    for time in times:
        ending.see(time)
    return ending


def rounds(workers, seconds, number, spread):
    """Times at which so many workers finish calls; spread 0: all at once, 1: evenly."""
    return [
        START + (i + 1) * seconds + spread * w * seconds / workers
        for i in range(number)
        for w in range(workers)
    ]


@given(
    workers=st.integers(1, 32),
    seconds=st.floats(0.01, 600),
    number=st.integers(6, 20),
    spread=st.floats(0, 1),
    remaining=st.integers(1, 10_000),
    late=st.floats(0, 0.9),
)
def test_a_steady_run_ends_when_it_says(workers, seconds, number, spread, remaining, late):
    written = rounds(workers, seconds, number, spread)
    now = written[-1] + late * seconds
    pace = seconds / workers
    end = ending_of(written).estimate(remaining, now, workers)
    assert end == pytest.approx(max(now, written[-1] + remaining * pace), abs=1e-3 * remaining)


@given(workers=st.integers(1, 32), seconds=st.floats(0.01, 600), spread=st.floats(0, 1))
def test_nothing_is_said_before_two_rounds(workers, seconds, spread):
    written = rounds(workers, seconds, 8, spread)
    said = [
        ending_of(written[:n]).estimate(100, written[n - 1], workers) is not None
        for n in range(1, len(written))
    ]
    first = said.index(True) + 1
    assert first >= max(5, 2 * workers)
    assert all(said[first:])
    assert Ending().estimate(5, START) is None


def test_a_run_without_work_has_no_end():
    assert ending_of(rounds(1, 1.0, 20, 0)).estimate(0, START + 20) is None


def test_the_pace_is_that_of_now():
    """The first hour was ten times as fast."""
    fast = [START + 0.1 * i for i in range(36_000)]
    slow = [fast[-1] + 1.0 * (i + 1) for i in range(40)]
    assert ending_of(fast + slow).estimate(100, slow[-1]) == pytest.approx(slow[-1] + 100, abs=1e-3)


def test_a_run_that_stands_still_ends_later_and_later():
    ending = ending_of(rounds(1, 1.0, 20, 0))
    ends = [ending.estimate(10, START + 20 + waited) for waited in (0, 1, 10, 100, 1000)]
    assert ends[:2] == pytest.approx([START + 30] * 2, abs=1e-3)
    assert ends[1] < ends[2] < ends[3] < ends[4]
    assert ends[4] > START + 1020


def test_other_workers_have_another_pace():
    ending = ending_of(rounds(4, 1.0, 20, 1.0))
    assert ending.estimate(10, START + 21, 4) is not None
    ending.begin_again()
    assert ending.estimate(10, START + 21, 2) is None
    for time in rounds(2, 1.0, 4, 0):
        ending.see(time + 21)
    assert ending.estimate(10, START + 25, 2) == pytest.approx(START + 25 + 5, abs=1e-3)
