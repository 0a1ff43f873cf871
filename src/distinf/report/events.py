"""What happened when: the events of a run, and their totals."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from distinf.report.advice import Work

log = logging.getLogger("distinf")

# A killed run may lose the events of this many seconds, and at most so many; as many are read.
_FLUSH_SECONDS = 1.0
_UNWRITTEN = 1000


# Kinds of events that take no time.
INCIDENTS = ("lost", "skip")


@dataclass(frozen=True)
class Event:
    """One thing that took time, from ``start`` to ``end`` in seconds since the epoch, on a rank.

    ``kind`` is ``"load"`` (models), ``"read"`` (initial conditions, or the state of a call, by its
    worker), ``"forecast"`` (a prognostic
    step), ``"diagnose"`` (a diagnostic call) or ``"write"``; ``task`` names the step or task. Two
    take no time and say in ``task`` why: ``"lost"`` (the rank) and ``"skip"`` (a task that failed).
    ``nbytes`` is the size of a call's inputs or of what was written, ``nbytes_out`` that of a
    call's results. ``attempt`` counts the tries of a task, ``sent`` is when it was handed out, and
    ``memory`` what its rank's process, or its GPU, held afterwards, in bytes; 0: not known.
    ``step`` names the state of a prognostic step as the tasks of that state do.
    """

    kind: str
    task: str
    rank: int
    start: float
    end: float
    nbytes: int = 0
    nbytes_out: int = 0
    attempt: int = 1
    sent: float = 0.0
    memory: int = 0
    step: str = ""


@dataclass
class Totals:
    """Sums over the events of a run.

    ``counts``, ``seconds``, ``nbytes`` and ``shortest`` (seconds) are by kind, ``calls`` and
    ``busy`` (seconds of diagnostic calls) by rank. The run lasts from ``start`` to ``end``, in
    seconds since the epoch, without loading. ``first_state`` is when the first forecast event
    ended, ``first_step`` its length. ``steps`` is the number of forecast events by rank; ``blocks``
    names what was forecast beside each other, times and members.
    """

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    nbytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    calls: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    steps: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    blocks: set[str] = field(default_factory=set)
    busy: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    nbytes_out: int = 0
    start: float = math.inf
    end: float = -math.inf
    first_state: float = math.inf
    first_step: float = 0.0
    shortest: dict[str, float] = field(default_factory=lambda: defaultdict(lambda: math.inf))

    @classmethod
    def of(cls, events: Iterable[Event]) -> Totals:
        """Add up events, or return the totals of a session."""
        if isinstance(events, Events):
            return events.totals
        totals = cls()
        for event in events:
            totals.add(event)
        return totals

    def add(self, event: Event) -> None:
        """Count one more event."""
        seconds = event.end - event.start
        self.counts[event.kind] += 1
        self.seconds[event.kind] += seconds
        self.nbytes[event.kind] += event.nbytes
        self.shortest[event.kind] = max(0.0, min(seconds, self.shortest[event.kind]))
        if event.kind not in ("load", *INCIDENTS):
            self.start, self.end = min(self.start, event.start), max(self.end, event.end)
        if event.kind == "diagnose":
            self.calls[event.rank] += 1
            self.busy[event.rank] += seconds
            self.nbytes_out += event.nbytes_out
        elif event.kind == "forecast":
            self.steps[event.rank] += 1
            self.blocks.add(event.task.rpartition(" step ")[0])
            if event.end < self.first_state:
                self.first_state, self.first_step = event.end, seconds

    def work(self, writers: int = 1) -> Work | None:
        """Return the run's work in mean times; None if it made no diagnostic call."""
        tasks, states = self.counts["diagnose"], max(1, self.counts["forecast"])
        if not tasks:
            return None
        return Work(
            states,
            tasks,
            max(0.0, self.seconds["forecast"] - self.first_step) / max(1, states - 1),
            max(0.0, self.seconds["diagnose"] / tasks),
            max(0.0, self.seconds["write"] / tasks),
            max(0.0, self.first_state - self.start) if self.counts["forecast"] else 0.0,
            writers,
            self.shortest["diagnose"],
            self.shortest["write"] if self.counts["write"] else 0.0,
            0.0 if self.counts["forecast"] else self.seconds["read"] / tasks,
            not self.counts["forecast"],
            max(1, len(self.blocks)),
            max(1, len(self.steps)),
            len(self.steps) > 1 and self.steps.keys() == self.calls.keys(),
        )


class Events:
    """The events of a session, in the order in which they ended. Safe from any thread.

    They are kept in a file, a temporary one until :meth:`save`, so that the memory of a run does
    not grow with its length; their totals are kept in memory.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self._lock = threading.Lock()
        self._observers: list[Callable[[Event], None]] = []
        self._file: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        # Formatted together, which takes less time than one by one between two calls.
        self._unwritten: list[Event] = []
        self._flushed = 0.0
        self._recording = True

    def record(self, event: Event) -> None:
        """Add an event and show it to the observers."""
        with self._lock:
            self.totals.add(event)
            self._keep(event)
        for observer in self._observers:
            observer(event)

    @contextmanager
    def timed(self, kind: str, task: str, rank: int, nbytes: int = 0) -> Iterator[None]:
        """Record the block as one event, unless it raises."""
        start = time.time()
        yield
        self.record(Event(kind, task, rank, start, time.time(), nbytes))

    def observe(self, observer: Callable[[Event], None]) -> None:
        """Show every further event to ``observer``, on the thread that records it."""
        self._observers.append(observer)

    def __iter__(self) -> Iterator[Event]:
        place, lines = 0, [""]
        while lines:
            with self._lock:
                self._write_out()
                self._file.seek(place)
                lines = list(itertools.islice(iter(self._file.readline, ""), _UNWRITTEN))
                place = self._file.tell()
                self._file.seek(0, os.SEEK_END)  # where the next ones are written
            yield from (Event(**json.loads(line)) for line in lines)

    def save(self, path: str | Path) -> None:
        """Write the events to this file as JSON lines, later ones as they come.

        The file is replaced; raises `OSError` if it cannot be written.
        """
        with self._lock:
            file = Path(path).open("w+", encoding="utf-8")  # noqa: SIM115
            self._write_out()
            self._file.seek(0)
            shutil.copyfileobj(self._file, file)
            file.flush()
            self._file.close()
            self._file = file

    def flush(self) -> None:
        """Write events that are not in the file yet."""
        with self._lock:
            self._write_out()

    def _keep(self, event: Event) -> None:
        if not self._recording:
            return
        self._unwritten.append(event)
        late = not 0 <= event.end - self._flushed < _FLUSH_SECONDS
        if late or len(self._unwritten) >= _UNWRITTEN:
            self._flushed = event.end
            self._write_out()

    def _write_out(self) -> None:
        lines, self._unwritten = [json.dumps(vars(e)) + "\n" for e in self._unwritten], []
        if not self._recording:
            return
        try:
            self._file.writelines(lines)
            self._file.flush()
        except OSError as error:  # this must not stop the run
            log.warning("events are no longer recorded: %s", error)
            self._recording = False


class SavedEvents:
    """The events in a file that `Events.save` wrote; they are read whenever they are iterated."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def __iter__(self) -> Iterator[Event]:
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):  # a killed run may leave half a line
                    yield Event(**json.loads(line))
