"""Initial times as a period, and the size of an ensemble."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distinf.errors import ConfigError
from distinf.parameters import parse_ensemble, parse_times

UNITS = {"min": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
STARTS = st.datetimes(datetime(1950, 1, 1), datetime(2100, 1, 1)).map(
    lambda t: t.replace(microsecond=0)
)


@given(STARTS, st.integers(1, 48), st.sampled_from(sorted(UNITS)), st.integers(0, 40), st.data())
def test_a_period_includes_its_end(start, count, unit, n, data):
    step = count * UNITS[unit]
    beyond = data.draw(st.timedeltas(timedelta(0), step - timedelta(seconds=1)))
    end = start + n * step + timedelta(seconds=int(beyond.total_seconds()))
    interval = f"{count}{data.draw(st.sampled_from(['', ' ']))}{unit}"
    times = parse_times({"start": str(start), "end": end.isoformat(), "interval": interval})
    expected = np.array([start + i * step for i in range(n + 1)], "datetime64[ns]")
    np.testing.assert_array_equal(times, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"interval": "soon"}, ["parameters.time.interval=soon", "6h"]),
        ({"interval": "0h"}, ["parameters.time.interval=0h", "6h"]),
        ({"interval": 6}, ["parameters.time.interval=6", "6h"]),
        ({"end": "2019-12-31"}, ["parameters.time.end=2019-12-31", "before its start"]),
        ({"start": "never"}, ["parameters.time.start=never", "not a time"]),
        ({"starts": "2020-01-02"}, ["parameters.time.starts", "Did you mean", "start"]),
    ],
)
def test_a_period_that_cannot_be_is_explained(change, words):
    with pytest.raises(ConfigError) as caught:
        parse_times({"start": "2020-01-01", "end": "2020-01-02", "interval": "6h", **change})
    for word in words:
        assert word in str(caught.value)


def test_a_period_needs_all_three():
    with pytest.raises(ConfigError, match=r"parameters\.time\.interval is missing"):
        parse_times({"start": "2020-01-01", "end": "2020-01-02"})


def test_an_ensemble_is_a_number_of_members_that_differ():
    assert parse_ensemble(None, None) is None
    assert parse_ensemble(3, {"_target_": "P"}) == 3
    for wrong in (0, -1, 2.5, True, "three"):
        with pytest.raises(ConfigError, match=f"parameters.ensemble={wrong}: must be"):
            parse_ensemble(wrong, {"_target_": "P"})
    with pytest.raises(ConfigError, match=r"ensemble=3: all members would be the same; choose"):
        parse_ensemble(3, None)
