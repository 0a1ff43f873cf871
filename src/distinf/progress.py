"""What happened when: the events of a run, its progress bar, its summary."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

__all__ = ["Event", "Events", "Progress", "summarize"]


@dataclass(frozen=True)
class Event:
    """One thing that took time.

    Parameters
    ----------
    kind : str
        ``"forecast"`` (a prognostic step), ``"diagnose"`` (a diagnostic call) or ``"write"``.
    task : str
        Which step or task.
    rank : int
        Where.
    start, end : float
        Seconds since the epoch.
    nbytes : int
        Bytes of the tensors that went in, for a diagnostic call; that were written, for a write.
    nbytes_out : int
        Bytes of the tensors that came back from a diagnostic call.
    """

    kind: str
    task: str
    rank: int
    start: float
    end: float
    nbytes: int = 0
    nbytes_out: int = 0


class Events:
    """The events of a session, in the order in which they ended. Safe from any thread."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._observers: list[Callable[[Event], None]] = []

    def record(self, event: Event) -> None:
        """Add an event and show it to the observers."""
        with self._lock:
            self._events.append(event)
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
        with self._lock:
            return iter(list(self._events))

    def save(self, path: str | Path) -> None:
        """Write the events as JSON lines."""
        lines = [json.dumps(asdict(event)) + "\n" for event in self]
        Path(path).write_text("".join(lines), encoding="utf-8")


class Progress:
    """A progress bar over tasks that are in the store.

    Parameters
    ----------
    events : Events
        What it shows: steps forecast, diagnosed and written.
    total : int
        Number of tasks of the run.
    done : int, optional
        Tasks that were complete before it began, by default 0.
    busy : Callable[[], tuple[int, int]] | None, optional
        Tells how many workers are busy, and how many there are.
    """

    def __init__(
        self,
        events: Events,
        total: int,
        done: int = 0,
        busy: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self._counts = {"forecast": 0, "diagnose": 0, "write": 0}
        self._busy = busy
        self._lock = threading.Lock()
        # A terminal is redrawn often, a log file gets a line now and then.
        interval = 0.2 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="step",
            mininterval=interval,
            file=sys.stderr,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} written [{elapsed}<{remaining}{postfix}]",
            dynamic_ncols=True,
        )
        events.observe(self._update)

    def _update(self, event: Event) -> None:
        with self._lock:
            self._counts[event.kind] = self._counts.get(event.kind, 0) + 1
            state = f"forecast {self._counts['forecast']}, diagnosed {self._counts['diagnose']}"
            if self._busy is not None:
                busy, workers = self._busy()
                state += f", workers busy {busy}/{workers}"
            self._bar.set_postfix_str(state, refresh=False)
            self._bar.update(1 if event.kind == "write" else 0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()


def summarize(events: Iterable[Event], wall: float, workers: tuple[int, ...]) -> str:
    """Say where the time went, what limited the run and what would help.

    With one worker per GPU a run cannot be faster than the largest of three: all forecast
    steps one after the other; all diagnostic calls, shared by the workers; all writing.

    Parameters
    ----------
    events : Iterable[Event]
        Events of the run.
    wall : float
        Seconds from the first forecast step to the last write.
    workers : tuple[int, ...]
        Ranks that ran diagnostics.

    Returns
    -------
    str
        A few lines of text.
    """
    seconds = {"forecast": 0.0, "diagnose": 0.0, "write": 0.0}
    calls = dict.fromkeys(workers, 0)
    busy = dict.fromkeys(workers, 0.0)
    moved_in = moved_out = written = 0
    for event in events:
        seconds[event.kind] = seconds.get(event.kind, 0.0) + event.end - event.start
        if event.kind == "diagnose":
            calls[event.rank] = calls.get(event.rank, 0) + 1
            busy[event.rank] = busy.get(event.rank, 0.0) + event.end - event.start
            moved_in += event.nbytes
            moved_out += event.nbytes_out
        elif event.kind == "write":
            written += event.nbytes
    wall = max(wall, 1e-9)
    lines = [
        f"Wall time {wall:.1f} s: forecast {seconds['forecast']:.1f} s, "
        f"diagnostics {seconds['diagnose']:.1f} s on {len(workers)} worker(s), "
        f"writing {seconds['write']:.1f} s"
    ]
    lines += [
        f"  rank {rank}: {calls[rank]} calls, busy {100 * busy[rank] / wall:.0f} %"
        for rank in sorted(calls)
    ]
    lines.append(
        f"Moved {_size(moved_in)} to the workers and {_size(moved_out)} back; "
        f"wrote {_size(written)} (uncompressed)"
    )
    lines.append(_advice(seconds, len(workers), in_process=workers == (0,)))
    return "\n".join(lines)


def _advice(seconds: dict[str, float], workers: int, in_process: bool) -> str:
    forecast, diagnose, write = (seconds[kind] for kind in ("forecast", "diagnose", "write"))
    if in_process:
        best = max(forecast, diagnose)
        gain = (forecast + diagnose) / best if best else 1.0
        return (
            f"Limited by one process doing everything in turn. "
            f"One worker more (runtime.nproc=2) could make it up to {gain:.1f} times as fast."
        )
    share = diagnose / max(workers, 1)
    if write > max(forecast, share):
        return "Limited by writing. A faster disk or fewer variables would help."
    if share > forecast:
        wanted = math.ceil(diagnose / forecast) if forecast else workers + 1
        return (
            f"Limited by the diagnostics. {wanted} workers (runtime.nproc={wanted + 1}) "
            "would keep up with the forecast, where there are as many GPUs or cores."
        )
    enough = max(1, math.ceil(diagnose / forecast)) if forecast else 1
    if enough < workers:
        return (
            f"Limited by the prognostic. {enough} worker(s) (runtime.nproc={enough + 1}) "
            "would do as well; a faster device for rank 0 would help."
        )
    return (
        "Limited by the prognostic. A faster device for rank 0 would help; more workers would not."
    )


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def versions() -> dict[str, str]:
    """Versions of what the bytes of a run depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {}
    for name in (
        "distinf",
        "torch",
        "torch-harmonics",
        "earth2studio",
        "nvidia-physicsnemo",
        "zarr",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
