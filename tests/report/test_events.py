"""Events are kept in a file, their totals in memory."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distinf.report.advice import ideal
from distinf.report.events import Event, Events, Totals
from distinf.report.summary import summarize

times = st.integers(0, 40).map(lambda n: n / 8)


@given(st.lists(st.tuples(times, times, times), min_size=1, max_size=20), st.integers(1, 4))
def test_no_run_is_faster_than_its_least_time(durations, workers):
    """Steps, calls and writes of any length, done as early as can be."""
    totals, now, free, writers = Totals(), 10.0, [0.0] * workers, [0.0, 0.0]
    for step, call, write in durations:
        totals.add(Event("forecast", "", 0, now, now + step))
        now += step
        begun = max(now, min(free))
        free[free.index(min(free))] = begun + call
        totals.add(Event("diagnose", "", 1, begun, begun + call))
        written = max(begun + call, min(writers))
        writers[writers.index(min(writers))] = written + write
        totals.add(Event("write", "", 0, written, written + write))
    assert ideal(totals.work(writers=2), workers) <= totals.end - totals.start + 1e-9


def test_loading_is_no_part_of_the_wall_time():
    events = Events()
    events.record(Event("load", "prognostic", 0, 10.0, 90.0))
    events.record(Event("read", "", 0, 99.0, 100.0))
    assert (events.totals.start, events.totals.end) == (99.0, 100.0)


def events_of_a_run():
    """41 states, 50 ms apart; a call of 0.2 s on each, on two workers in turn; 10 ms a write."""
    yield Event("read", "", 0, 99.0, 100.0)
    for step in range(41):
        done = 100 + 0.05 * step
        yield Event("forecast", f"step {step}", 0, done - (0.05 if step else 0), done)
    for step in range(41):
        begun = 100 + 0.2 * (step // 2)
        yield Event("diagnose", f"step {step}", 1 + step % 2, begun, begun + 0.2, 1000, 100)
        yield Event("write", f"step {step}", 0, begun + 0.2, begun + 0.21, 100)


def test_events_are_streamed_and_read_back(tmp_path):
    events, all_events = Events(), list(events_of_a_run())
    for event in all_events[:10]:
        events.record(event)
    events.save(tmp_path / "events.jsonl")
    for event in all_events[10:]:
        events.record(event)
    assert list(events) == all_events
    events.record(all_events[0])  # after reading, too, at the end
    events.flush()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [Event(**json.loads(line)) for line in lines] == [*all_events, all_events[0]]


def test_a_killed_run_leaves_its_events(tmp_path):
    events = Events()
    events.save(tmp_path / "events.jsonl")
    for event in events_of_a_run():
        events.record(event)
    there = (tmp_path / "events.jsonl").read_text().splitlines()
    # Every second of events is flushed once.
    assert len(there) >= 80


def test_memory_does_not_grow_with_the_run():
    events, event = Events(), Event("write", "a label", 0, 0.0, 1.0)
    tracemalloc.start()
    try:
        for _ in range(500):
            events.record(event)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(5000):
            events.record(event)
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_run_when_its_events_are_read(tmp_path):
    """Others come meanwhile, and the file moves; each is read once and written at the end."""
    events, count = Events(), 5000
    for number in range(count):
        events.record(Event("write", f"{number}", 0, 0.0, 1.0))
    tracemalloc.start()
    try:
        read = iter(events)
        for number in range(count):
            assert next(read).task == f"{number}"
            if number == 10:
                events.record(Event("write", f"{count}", 0, 0.0, 1.0))
                events.save(tmp_path / "events.jsonl")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [event.task for event in read] == [f"{count}"]
    assert peak < 500_000  # all of them take more than a megabyte
    events.record(Event("write", "last", 0, 0.0, 1.0))
    assert [event.task for event in events] == [*map(str, range(count + 1)), "last"]


def test_a_full_disk_stops_the_recording_only(tmp_path, caplog):
    events = Events()
    events.save("/dev/full")
    for event in events_of_a_run():
        events.record(event)
    events.flush()
    assert caplog.text.count("no longer recorded") == 1
    assert events.totals.counts["diagnose"] == 41


@pytest.mark.parametrize("kind", [list, "events"])
def test_summary(kind):
    given = list(events_of_a_run())
    if kind == "events":
        events = Events()
        for event in given:
            events.record(event)
        given = events
    text = summarize(given, 5.3, (1, 2))
    assert (
        "Wall time 5.3 s: forecast 2.0 s, diagnostics 8.2 s on 2 worker(s), writing 0.4 s" in text
    )
    assert "rank 1: 21 calls, busy 79 %" in text
    assert "Moved 41.0 kB to the workers and 4.1 kB back; wrote 4.1 kB" in text
    assert "Workers were busy 77 % of the time" in text
    assert "takes at least 5.1 s with 2 worker(s)" in text
    assert "One process would take 11.6 s, 2.2 times as long: the sum of the measured" in text
    assert summarize(given, 5.3, (1, 2), cores=3) == text
    shared = summarize(given, 5.3, (1, 2), cores=2)
    assert "One process would take at most 10.6 s, 2.0 times as long: what 2 cores can" in shared
    assert "3 ranks shared them, so the sum of the measured times of these calls is" in shared
    assert "more: 11.6 s" in shared
    assert "Limited by the diagnostics. 4 workers (runtime.nproc=5)" in text


def test_summary_without_a_call():
    assert "Limited" not in summarize([Event("forecast", "", 0, 0.0, 1.0)], 1.0, (1, 2))
