"""What a run says of itself while it goes on: a bar on a terminal, else lines."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from distinf.report.ending import Ending
from distinf.report.events import Event, Events
from distinf.report.limits import Recent, limited_by
from distinf.report.status import Status

_LOOK_SECONDS = 0.25
# Lines are so far apart at first, and later this part of the time so far: some 150 in a day.
_LINE_SECONDS, _LINE_SHARE = 10.0, 0.05

_WORDS = {
    "prognostic": "limited by the prognostic",
    "diagnostics": "limited by the diagnostics",
    "reading": "limited by reading",
    "writing": "limited by writing",
}


@dataclass(frozen=True)
class Outlook:
    """How far a run is, what limits it now and when it will end.

    ``written`` of ``total`` tasks are in the store, of which ``before`` were there when the run
    began. ``limit`` is one of `distinf.report.limits.LIMITS`, ``end`` is in seconds since the
    epoch; None: not known, or nothing is left to do.
    """

    total: int
    before: int
    written: int
    limit: str | None
    end: float | None
    counts: dict[str, int]
    status: Status

    @property
    def skipped(self) -> int:
        """Tasks that failed and are left out."""
        return self.counts.get("skip", 0)

    @property
    def to_do(self) -> int:
        """Tasks that are still to be written."""
        return self.total - self.written - self.skipped

    def words(self, last: bool) -> str:
        """Say it, the most important first, since a terminal may be narrow.

        ``last``: the run has ended, well or not.
        """
        left = self.to_do > 0 and not last
        ends = f"ends {clock_time(self.end, time.time())}" if self.end else "end not known yet"
        found = [ends] * left
        if left and self.status.waiting:
            found.append(self.status.waiting)
        elif left and self.limit in _WORDS:
            found.append(_WORDS[self.limit])
        found += self.status.trouble
        found += [f"{self.skipped} skipped"] * (self.skipped > 0)
        if left and (self.status.workers or self.status.lost):
            found.append(f"workers busy {self.status.busy}/{self.status.workers}")
        states = "forecast" if self.counts.get("forecast") else "read"
        found.append(f"{states} {self.counts.get(states, 0)}")
        return ", ".join([*found, f"diagnosed {self.counts.get('diagnose', 0)}"])


def clock_time(moment: float, now: float) -> str:
    """Return a local time, with the date unless it is that of ``now``."""
    there, here = time.localtime(moment), time.localtime(now)
    return time.strftime("%H:%M" if there[:3] == here[:3] else "%Y-%m-%d %H:%M", there)


def next_line(printed: float, start: float) -> float:
    """Return when the line after that of ``printed`` is due, in a run since ``start``."""
    return printed + max(_LINE_SECONDS, _LINE_SHARE * (printed - start))


class Progress:
    """Shows on stderr how many tasks are in the store: a bar on a terminal, else plain lines.

    Parameters
    ----------
    events : Events
        Of the session; steps that were forecast, diagnosed and written are shown.
    total : int
        Number of tasks of the run.
    done : int, optional
        Tasks that were complete before it began, by default 0.
    status : Callable[[], Status] | None, optional
        Returns what the workers do now; by default None: not known.
    writers : int, optional
        Threads that write on rank 0, by default 1.
    """

    def __init__(
        self,
        events: Events,
        total: int,
        done: int = 0,
        status: Callable[[], Status] | None = None,
        writers: int = 1,
    ) -> None:
        self._total, self._before = total, done
        self._status = status or (lambda: Status(workers=0))
        self._start = time.time()
        self._recent, self._ending = Recent(writers, self._start), Ending()
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._workers: tuple[int, int] | None = None
        self._shown: _Bar | _Lines = (
            _Bar(total, done) if sys.stderr.isatty() else _Lines(self._start)
        )
        events.observe(self._see)
        self._end = threading.Event()
        # Drawn on a thread of its own: a slow terminal must not hold up a task.
        self._watch = threading.Thread(target=self._run, name="distinf-progress", daemon=True)
        self._watch.start()

    def _see(self, event: Event) -> None:
        with self._lock:
            self._counts[event.kind] = self._counts.get(event.kind, 0) + 1
        self._recent.see(event)
        if event.kind == "write":
            self._ending.see(event.end)

    def _run(self) -> None:
        self._show(False)
        while not self._end.wait(_LOOK_SECONDS):
            self._sample()
            self._show(False)

    def _sample(self) -> None:
        status = self._status()
        workers = status.workers, status.losses
        if self._workers not in (None, workers):
            self._ending.begin_again()
        self._workers = workers
        self._recent.sample(status, time.time())

    def _show(self, last: bool) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            self._shown.show(self.outlook(), last)

    def outlook(self) -> Outlook:
        """Return how far the run is, what limits it now and when it will end."""
        now, status = time.time(), self._status()
        with self._lock:
            counts = dict(self._counts)
        written = self._before + counts.get("write", 0)
        remaining = self._total - written - counts.get("skip", 0)
        # A chain gives several results at once.
        calls = counts.get("diagnose", 0)
        results = max(1, round(counts.get("write", 0) / calls)) if calls else 1
        end = self._ending.estimate(remaining, now, max(1, status.workers) * results)
        limit = limited_by(self._recent.shares(now)) if remaining > 0 else None
        return Outlook(self._total, self._before, written, limit, end, counts, status)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._watch.join()
        self._show(True)


class _Bar:
    """A bar that is drawn again and again on one line of a terminal."""

    def __init__(self, total: int, done: int) -> None:
        self._bar = tqdm(
            total=total,
            initial=done,
            file=sys.stderr,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} written [{elapsed}{postfix}]",
            dynamic_ncols=True,
        )

    def show(self, outlook: Outlook, last: bool) -> None:
        self._bar.n = outlook.written
        self._bar.set_postfix_str(outlook.words(last), refresh=False)
        self._bar.refresh()
        if last:
            self._bar.close()


class _Lines:
    """Whole lines of plain text, for a log or a notebook."""

    def __init__(self, start: float) -> None:
        self._start, self._printed, self._losses = start, start, 0

    def show(self, outlook: Outlook, last: bool) -> None:
        now = time.time()
        due = now >= next_line(self._printed, self._start)
        if not (due or last or outlook.status.losses > self._losses):
            return
        self._printed, self._losses = now, outlook.status.losses
        percentage = 100 * outlook.written // max(1, outlook.total)
        stamp = time.strftime("%H:%M:%S", time.localtime(now))
        done = f"{outlook.written}/{outlook.total} written ({percentage} %)"
        sys.stderr.write(f"[{stamp}] {done}, {outlook.words(last)}\n")
        sys.stderr.flush()
