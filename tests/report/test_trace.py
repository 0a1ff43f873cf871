"""The timeline of a run in the Trace Event format."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distinf.report import Event, write_trace
from distinf.report.trace import trace

# The fields that the format requires of each kind of entry, beside "name" and "pid".
REQUIRED = {
    "X": {"cat", "tid", "ts", "dur", "args"},
    "s": {"cat", "tid", "ts", "id"},
    "f": {"cat", "tid", "ts", "id", "bp"},
    "C": {"ts", "args"},
    "M": {"args"},
    "i": {"ts", "s"},
}
NAMES = {"process_name": str, "thread_name": str, "process_sort_index": int}


def assert_valid(entries: list[dict[str, Any]]) -> None:
    """As https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU says."""
    rows: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    arrows: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        assert isinstance(entry["name"], str)
        assert isinstance(entry["pid"], int)
        own = REQUIRED[entry["ph"]] | ({"tid"} if entry["name"] == "thread_name" else set())
        assert entry.keys() == {"ph", "name", "pid", *own}
        assert entry.get("ts", 0) >= 0
        if entry["ph"] == "X":
            assert entry["dur"] >= 0
            rows[entry["pid"], entry["tid"]].append((entry["ts"], entry["ts"] + entry["dur"]))
        elif entry["ph"] in "sf":
            assert isinstance(entry["id"], int)  # Perfetto drops others
            arrows[entry["cat"], entry["name"], entry["id"]].append(entry)
        elif entry["ph"] == "C":
            assert all(isinstance(v, int | float) and v >= 0 for v in entry["args"].values())
        elif entry["ph"] == "M":
            (value,) = entry["args"].values()
            assert isinstance(value, NAMES[entry["name"]])
    for slices in rows.values():  # viewers show no slices that overlap in a row
        ordered = sorted(slices)
        for (_, end), (start, _) in itertools.pairwise(ordered):
            assert start >= end - 1
    for begin, end in arrows.values():
        assert (begin["ph"], end["ph"]) == ("s", "f")
        assert begin["ts"] <= end["ts"]
        for entry in (begin, end):
            at = rows[entry["pid"], entry["tid"]]
            assert any(start <= entry["ts"] <= stop for start, stop in at)


times = st.integers(0, 400).map(lambda n: n / 8)
EVENTS = st.builds(
    lambda kind, task, rank, start, length, sent: Event(
        kind, task, rank, start, start + length, sent=start - sent, memory=rank * 10**6
    ),
    kind=st.sampled_from(["load", "read", "forecast", "diagnose", "write", "lost", "skip"]),
    task=st.sampled_from(["", "wind 2023-06-01T00:00 +6 h", "a+b 2023-06-01T00:00 +6 h"]),
    rank=st.integers(0, 3),
    start=times,
    length=times,
    sent=times,
)


@given(st.lists(EVENTS, max_size=40))
def test_every_trace_is_valid(events: list[Event]) -> None:
    entries = json.loads(json.dumps(list(trace(events))))
    assert_valid(entries)
    incidents = sum(event.kind in ("lost", "skip") for event in events)
    assert sum(entry["ph"] == "i" for entry in entries) == incidents
    assert sum(entry["ph"] == "X" for entry in entries) == len(events) - incidents


@pytest.fixture
def entries(tmp_path: Path) -> list[dict[str, Any]]:
    """Of one state with two diagnostics, one of them a chain, on two ranks."""
    state = "2023-06-01T00:00 +6 h"
    events = [
        Event("forecast", "2023-06-01T00:00 step 1", 0, 10.0, 11.0, step=state),
        Event("diagnose", f"wind {state}", 1, 11.5, 12.0, 8, 4, 1, 11.0, 5_000_000),
        Event("diagnose", f"a+b {state}", 2, 12.0, 13.0, 8, 4, 2, 11.1, 6_000_000),
        Event("write", f"wind {state}", 0, 12.5, 13.0, 4),
        Event("write", f"b {state}", 2, 13.0, 13.5, 4),
    ]
    write_trace(iter(events), tmp_path / "trace.json")
    told = json.loads((tmp_path / "trace.json").read_text())
    assert_valid(told["traceEvents"])
    return list(told["traceEvents"])


def test_a_call_shows_its_rank_bytes_and_attempt(entries: list[dict[str, Any]]) -> None:
    (call,) = [e for e in entries if e["ph"] == "X" and e["name"].startswith("a+b")]
    assert (call["pid"], call["ts"], call["dur"]) == (2, 2e6, 1e6)
    assert call["args"] == {"rank": 2, "bytes": 8, "bytes of results": 4, "attempt": 2}


def test_arrows_lead_from_the_step_to_the_writing(entries: list[dict[str, Any]]) -> None:
    ranks: dict[int, list[Any]] = defaultdict(list)
    for entry in entries:
        if entry["ph"] in "sf":
            ranks[entry["id"]] += [entry["name"], entry["pid"]]
    assert sorted(ranks.values()) == [
        ["result", 1, "result", 0],
        ["result", 2, "result", 2],
        ["step", 0, "step", 1],
        ["step", 0, "step", 2],
    ]


def test_counters_show_the_queues_and_the_memory(entries: list[dict[str, Any]]) -> None:
    counted: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry in entries:
        if entry["ph"] == "C":
            counted[entry["name"]].append((entry["ts"] / 1e6, *entry["args"].values()))
    assert counted["tasks that wait"] == [
        *((1.0, 1), (1.1, 2)),
        *((1.5, 1), (2.0, 0)),
    ]
    assert counted["results to write"] == [(2.0, 1), (2.5, 0)]
    assert counted["memory"] == [(2.0, 5.0), (3.0, 6.0)]
