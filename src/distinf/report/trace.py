"""The timeline of a run in the Trace Event format, which Perfetto and chrome://tracing open.

Each rank is a process of the trace. Its rows are what it did beside each other: steps and calls,
reading, writing. An arrow goes from a step to the call that diagnoses it, and on to the writing of
the result. The format is described at
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distinf.report.events import INCIDENTS, Event

# Rows of a rank, in their order. What shares a row follows one another on most ranks.
_ROWS = {"load": "load", "read": "read", "forecast": "compute", "diagnose": "compute"}
_ORDER = ("load", "read", "compute", "write")
_LANES = 100  # rows of one kind on one rank, at most
_MICRO = 1e6


def write_trace(events: Iterable[Event], path: str | Path) -> None:
    """Write the timeline of a run to a JSON file; raises `OSError` if that is not possible.

    Parameters
    ----------
    events : Iterable[Event]
        Events of the run.
    path : str | Path
        The file, by custom ``trace.json``.
    """
    with Path(path).open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        for number, entry in enumerate(trace(events)):
            file.write((",\n" if number else "") + json.dumps(entry))
        file.write("\n]}\n")


def trace(events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    """Yield the entries of a trace; times are in microseconds since the first event."""
    ordered = sorted(events, key=lambda event: event.start)
    if not ordered:
        return
    first = ordered[0].start
    rows = _Rows()
    placed = [(e, rows.place(e)) for e in ordered if e.kind not in INCIDENTS]
    yield from rows.names()
    for event, row in placed:
        yield {
            "ph": "X",
            "name": event.task or event.kind,
            "cat": event.kind,
            "pid": event.rank,
            "tid": row,
            "ts": _since(event.start, first),
            "dur": _since(event.end, event.start),
            "args": _facts(event),
        }
    for event in ordered:
        if event.kind in INCIDENTS:
            what = {"ph": "i", "s": "p", "name": f"{event.kind}: {event.task}"}
            yield {**what, "pid": event.rank, "ts": _since(event.start, first)}
    waits: list[tuple[float, float]] = []
    yield from _arrows(placed, first, waits)
    yield from _counter("results to write", waits, first)
    sent = [(e.sent, e.start) for e in ordered if e.kind == "diagnose" and e.sent]
    yield from _counter("tasks that wait", sent, first)
    for event in ordered:
        if event.memory:
            memory = {"MB": round(event.memory / 1e6, 1)}
            at = _since(event.end, first)
            yield {"ph": "C", "name": "memory", "pid": event.rank, "ts": at, "args": memory}


def _since(time: float, first: float) -> float:
    return round(max(0.0, time - first) * _MICRO, 1)


def _facts(event: Event) -> dict[str, Any]:
    """Return what is shown of an event beside its times."""
    facts: dict[str, Any] = {"rank": event.rank}
    if event.nbytes:
        facts["bytes"] = event.nbytes
    if event.kind == "diagnose":
        facts |= {"bytes of results": event.nbytes_out, "attempt": event.attempt}
    return facts


class _Rows:
    """Gives each event a row of its rank in which nothing else goes on at that time."""

    def __init__(self) -> None:
        # By rank and kind of row: when each of its lanes is free again, the earliest first.
        self._free: dict[tuple[int, str], list[tuple[float, int]]] = defaultdict(list)

    def place(self, event: Event) -> int:
        """Return the number of a row; events must come in the order of their starts."""
        kind = _ROWS.get(event.kind, "write")
        free = self._free[event.rank, kind]
        if free and (free[0][0] <= event.start or len(free) >= _LANES):
            _, lane = heapq.heappop(free)
        else:
            lane = len(free)
        heapq.heappush(free, (event.end, lane))
        return _ORDER.index(kind) * _LANES + lane

    def names(self) -> Iterator[dict[str, Any]]:
        """Yield the entries that name the ranks and their rows."""
        for rank in sorted({rank for rank, _ in self._free}):
            name = {"name": f"rank {rank}"}
            yield {"ph": "M", "name": "process_name", "pid": rank, "args": name}
            order = {"sort_index": rank}
            yield {"ph": "M", "name": "process_sort_index", "pid": rank, "args": order}
        for (rank, kind), lanes in self._free.items():
            for _, lane in lanes:
                row = {"pid": rank, "tid": _ORDER.index(kind) * _LANES + lane}
                yield {"ph": "M", "name": "thread_name", **row, "args": {"name": kind}}


def _arrows(
    placed: Iterable[tuple[Event, int]], first: float, waits: list[tuple[float, float]]
) -> Iterator[dict[str, Any]]:
    """Yield arrows from each step to its calls and on to their writes; note how long each waits."""
    numbers = itertools.count(1)  # Perfetto takes no names
    steps: dict[str, tuple[Event, int]] = {}
    calls: dict[str, tuple[Event, int]] = {}
    for event, row in placed:
        name, _, step = event.task.partition(" ")
        if event.kind == "forecast" and event.step:
            steps[event.step] = event, row
        elif event.kind == "diagnose":
            for own in name.split("+"):
                calls[f"{own} {step}"] = event, row
            if step in steps:
                yield from _arrow("step", next(numbers), steps[step], (event, row), first)
        elif event.kind == "write" and event.task in calls:
            waits.append((calls[event.task][0].end, event.start))
            yield from _arrow("result", next(numbers), calls[event.task], (event, row), first)


def _arrow(
    name: str, number: int, begin: tuple[Event, int], end: tuple[Event, int], first: float
) -> Iterator[dict[str, Any]]:
    common = {"cat": "task", "name": name, "id": number}
    event, row = begin
    yield {"ph": "s", **common, "pid": event.rank, "tid": row, "ts": _since(event.start, first)}
    event, row = end
    at = _since(event.start, first)
    yield {"ph": "f", "bp": "e", **common, "pid": event.rank, "tid": row, "ts": at}


def _counter(
    name: str, intervals: Iterable[tuple[float, float]], first: float
) -> Iterator[dict[str, Any]]:
    """Yield how many of some intervals there are at a time, whenever that changes."""
    changes: dict[float, int] = defaultdict(int)
    for begin, end in intervals:
        if begin < end:
            changes[begin] += 1
            changes[end] -= 1
    count = 0
    for time in sorted(changes):
        count += changes[time]
        at = _since(time, first)
        yield {"ph": "C", "name": name, "pid": 0, "ts": at, "args": {"number": count}}
