"""Initial times as a period, and the size of an ensemble."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distinf.errors import ConfigError
from distinf.parameters import check_valid_times, parse_ensemble, parse_lead_times, parse_times

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


ZONES = st.sampled_from(["", "Z", "+00:00", "+02:00", "-0330", "+14", "-11:45", "+24:00"])
WRITTEN = st.builds(
    lambda date, separator, clock, zone: f"{date}{separator}{clock}{zone}",
    st.dates().map(str)
    | st.sampled_from(["2023-02-29", "2024-02-29", "20230601", "2023", "2023-W22"]),
    st.sampled_from(["", " ", "T", "t", "_"]),
    st.times().map(str) | st.sampled_from(["", "06", "24", "06:00", "0600", "06:60", "06:00:00,5"]),
    ZONES,
)


@given(WRITTEN | st.text(max_size=30) | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.{0,12}"))
@example("2262-04-11T23:47:16.854775")
@example("2262-04-11T23:47:16.854776")
@example("1677-09-21T00:12:43.145225")
@example("1677-09-21T00:12:43.145224")
@example("0001-01-01T00:00+01:00")
@example("9999-12-31T23:59:59-14:00")
@example("2023-06-01\n")
def test_a_time_is_read_as_iso_8601_says_or_refused_with_one_line(text):
    refusal = None
    try:
        (found,) = parse_times(text)
    except ConfigError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith("parameters.time=")
        assert len(refusal.splitlines()) == 1
        return
    expected = datetime.fromisoformat(text)
    expected = expected if expected.tzinfo else expected.replace(tzinfo=UTC)
    since = expected - datetime(1970, 1, 1, tzinfo=UTC)
    assert found == np.datetime64("1970-01-01", "ns") + np.timedelta64(since, "us")
    assert (found >= np.datetime64("1970-01-01", "ns")) == (since >= timedelta(0))


@given(
    st.datetimes(datetime(1678, 1, 1), datetime(2262, 4, 1)),
    st.none() | st.integers(-14 * 60, 14 * 60),
    st.sampled_from(["auto", "minutes", "seconds", "milliseconds"]),
    st.sampled_from("T "),
)
def test_every_time_that_can_be_held_is_accepted(time, offset, precision, separator):
    zone = None if offset is None else timezone(timedelta(minutes=offset))
    time = time.replace(tzinfo=zone)
    text = time.isoformat(separator, precision)
    (found,) = parse_times(text)
    expected = datetime.fromisoformat(text)
    if zone is not None:
        expected = expected.astimezone(UTC).replace(tzinfo=None)
    assert found == np.datetime64(expected, "us")


@pytest.mark.parametrize(
    ("given", "right"),
    [
        (20230601, "2023-06-01 "),
        (2023060100, "2023-06-01T00:00 "),
        (202306010630, "2023-06-01T06:30 "),
        (20230601063015, "2023-06-01T06:30:15 "),
        (2023, "2023-01-01 "),
        (20231301, "2023-06-01T00:00:00 "),
        (1685577600.0, "2023-06-01T00:00:00 "),
        (True, "2023-06-01T00:00:00 "),
        (np.int64(20230601), "2023-06-01 "),
        ("20230601", "2023-06-01 "),
        ("2023060106", "2023-06-01T06:00 "),
        ("2023-06", "2023-06-01 "),
        ("now", "2023-06-01T00:00:00 "),
        ("12023-06-01", "2023-06-01T00:00:00 "),
    ],
)
def test_what_is_no_date_is_refused_with_how_to_write_it(given, right):
    period = {"start": "2000-01-01", "end": "2024-01-01", "interval": "6h"}
    for where, time in (
        ("parameters.time", given),
        ("parameters.time", ["2023-07-01", given]),
        ("parameters.time.start", {**period, "start": given}),
        ("parameters.time.end", {**period, "end": given}),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_times(time)
        assert str(caught.value).startswith(f"{where}={given}: not a time")
        assert f"{right}(UTC)" in str(caught.value)


@pytest.mark.parametrize("given", ["2300-01-01", "1677-09-21", "0001-01-01", "2262-04-12"])
def test_a_date_that_cannot_be_held_is_refused(given):
    for time in (given, {"start": "2000-01-01", "end": given, "interval": "1d"}):
        with pytest.raises(ConfigError, match=rf"={given}: out of range; .*1677.*2262-04-11"):
            parse_times(time)


def test_a_period_is_bounded():
    whole = {"start": "1678-01-01", "end": "2262-04-11T23:47:16"}
    assert len(parse_times({**whole, "interval": "106751d"})) == 2
    for interval, words in (
        ("99999999999999999999d", "too long"),
        ("1min", "307.* times; at most"),
    ):
        with pytest.raises(ConfigError, match=rf"time\.interval={interval}: .*{words}"):
            parse_times({**whole, "interval": interval})


@given(st.integers(0, 200_000), st.sampled_from([1, 6, 24, 24 * 365]))
def test_a_forecast_ends_before_the_last_date(nsteps, hours):
    times = parse_times(["2000-01-01", "2261-06-01"])
    step = np.timedelta64(hours, "h")
    most = int((datetime(2262, 4, 11, 23, 47, 16) - datetime(2261, 6, 1)) / timedelta(hours=hours))
    if nsteps <= most:
        check_valid_times(times, step, nsteps)
        return
    with pytest.raises(ConfigError, match=rf"nsteps={nsteps}: .* 2262-04-11.* most {most} steps"):
        check_valid_times(times, step, nsteps)


@pytest.mark.parametrize(
    ("given", "hours"),
    [
        ("6h", [6]),
        (0, [0]),
        (["0h", "1d"], [0, 24]),
        ({"start": "0h", "end": "13h", "interval": "6h"}, [0, 6, 12]),
    ],
)
def test_lead_times_are_read(given: object, hours: list[int]) -> None:
    found = parse_lead_times(given)
    assert found.dtype == "timedelta64[ns]"
    assert list(found / np.timedelta64(1, "h")) == hours


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("6", "write it like 30min, 6h or 1d"),
        ([], "name at least one"),
        (["6h", "6h"], "each once"),
        (
            {"start": "6h", "end": "0h", "interval": "6h"},
            r"parameters\.lead_time\.end=0h lies before",
        ),
        ({"start": "0h", "end": "6h"}, r"parameters\.lead_time\.interval is missing"),
        ({"start": "0h", "end": "99999d", "interval": "1min"}, "at most 10000000 are possible"),
    ],
)
def test_wrong_lead_times_are_one_line(given: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_lead_times(given)
