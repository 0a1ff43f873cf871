"""What limits a run at this moment.

The names are those of :func:`distinf.report.advice.limit`, which judges a run as a whole.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distinf.report.events import INCIDENTS, Event
from distinf.report.status import Status

# Every name that `limited_by` returns; the last two while nothing else can go on.
LIMITS = ("prognostic", "diagnostics", "reading", "writing", "workers", "loading")

_SECONDS = 10.0  # that are recent
_STEPS = 3  # or as many of the longest step, call or write
_MOST_EVENTS, _MOST_SAMPLES = 1000, 4000
# Of the time: from here on all writers count as busy, or the workers as full.
_BUSY, _FULL = 0.8, 0.5
_READ_SECONDS = 1.0  # after the end of a read the step that needs it runs


@dataclass(frozen=True)
class Shares:
    """The part of a recent time, 0 to 1, in which each stage was at work.

    Parameters
    ----------
    forecast, read, write : float, optional
        Of the ranks that did it, or of the threads that write.
    busy : float, optional
        Of the workers.
    full : float, optional
        In which a task waited because no worker was free.
    reads_more : bool, optional
        Whether calls take longer to read their input than to compute.
    too_few : bool, optional
        Whether the run now waits for workers.
    """

    forecast: float = 0.0
    read: float = 0.0
    write: float = 0.0
    busy: float = 0.0
    full: float = 0.0
    reads_more: bool = False
    too_few: bool = False


def limited_by(shares: Shares) -> str:
    """Name what limits a run, one of `LIMITS`.

    The last stage that others wait for: a full queue before it also fills those before it.
    """
    if shares.too_few:
        return "workers"
    if shares.write >= _BUSY:
        return "writing"
    calls = "reading" if shares.reads_more else "diagnostics"
    if shares.full >= _FULL:
        return calls
    # Nothing waits for a stage: the one that works most of the time is the slowest.
    found = [
        (shares.forecast, "prognostic"),
        (shares.busy, calls),
        (shares.write, "writing"),
        (shares.read, "reading"),
    ]
    most, name = max(found, key=lambda pair: pair[0])
    return name if most > 0 else "reading"  # every run begins with it


class Recent:
    """The last events of a run and what its workers did meanwhile. Safe from any thread.

    ``writers`` is the number of threads that write on rank 0; other ranks write one result at a
    time. ``start`` is when the run begins, in seconds since the epoch.
    """

    def __init__(self, writers: int, start: float) -> None:
        self._writers, self._start = writers, start
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self._samples: deque[tuple[float, Status]] = deque(maxlen=_MOST_SAMPLES)

    def see(self, event: Event) -> None:
        """Take one more event into account."""
        if event.kind not in ("load", *INCIDENTS):
            with self._lock:
                self._events.append(event)

    def sample(self, status: Status, now: float) -> None:
        """Take into account what the workers do now; call it at regular times."""
        with self._lock:
            self._samples.append((now, status))

    def shares(self, now: float) -> Shares:
        """Return what each stage did in the recent time until ``now``."""
        with self._lock:
            events, samples = list(self._events), list(self._samples)
        longest = max((e.end - e.start for e in events), default=0.0)
        first = max(self._start, now - max(_SECONDS, _STEPS * longest))
        if len(events) == _MOST_EVENTS:
            first = max(first, min(e.end for e in events))
        kinds: dict[str, list[Event]] = {"forecast": [], "read": [], "write": [], "diagnose": []}
        for event in events:
            if event.end > first:
                kinds.setdefault(event.kind, []).append(event)
        seen = [status for time, status in samples if time > first] or [s for _, s in samples[-1:]]
        busy = _mean(s.busy / max(1, s.workers) for s in seen)
        forecast = _share(kinds["forecast"], _ranks(kinds["forecast"]), first, now)
        last_read = max((e.end for e in kinds["read"]), default=now)
        if not kinds["forecast"] and not busy and now - last_read > _READ_SECONDS:
            forecast = 1.0
        writers = self._writers if _ranks(kinds["write"]) == {0} else _ranks(kinds["write"])
        return Shares(
            forecast=forecast,
            read=_share(kinds["read"], _ranks(kinds["read"]), first, now),
            write=_share(kinds["write"], writers, first, now),
            busy=busy,
            full=_mean(float(s.full) for s in seen),
            reads_more=_seconds(kinds["read"]) > _seconds(kinds["diagnose"]),
            too_few=bool(samples) and bool(samples[-1][1].waiting),
        )


def _ranks(events: Iterable[Event]) -> set[int]:
    return {event.rank for event in events}


def _seconds(events: Iterable[Event]) -> float:
    return sum(event.end - event.start for event in events)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _share(events: Sequence[Event], lanes: set[int] | int, first: float, now: float) -> float:
    """Return how much of the time since ``first`` these took in so many lanes."""
    if not events:
        return 0.0
    count = lanes if isinstance(lanes, int) else len(lanes)
    last = max(event.end for event in events)
    # An event is known when it ends, so the next one may be under way.
    longest = max(event.end - event.start for event in events)
    end = last if now - last < 2 * longest else now
    inside = sum(min(e.end, end) - max(e.start, first) for e in events)
    return min(1.0, max(0.0, inside) / max(end - first, 1e-9) / count)
