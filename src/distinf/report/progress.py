"""The progress bar of a run, and its summary."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial

from tqdm import tqdm

from distinf.report.advice import advise, ideal, serial
from distinf.report.events import Event, Events, Totals

_LOOK_SECONDS = 1.0


class Progress:
    """A progress bar over tasks that are in the store.

    Parameters
    ----------
    events : Events
        Of the session; the bar shows steps that were forecast, diagnosed and written.
    total : int
        Number of tasks of the run.
    done : int, optional
        Tasks that were complete before it began, by default 0.
    busy : Callable[[], tuple[int, int]] | None, optional
        Returns how many workers are busy, and how many there are.
    waiting : Callable[[], str] | None, optional
        Says that the run waits for workers; empty while it does not.
    """

    def __init__(
        self,
        events: Events,
        total: int,
        done: int = 0,
        busy: Callable[[], tuple[int, int]] | None = None,
        waiting: Callable[[], str] | None = None,
    ) -> None:
        self._counts = {"forecast": 0, "read": 0, "diagnose": 0, "write": 0}
        self._busy = busy
        self._waits = ""
        self._lock = threading.Lock()
        # Redraw a terminal often, but add few lines to a log file.
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
        self._end = threading.Event()
        if waiting is not None:
            watch = partial(self._watch, waiting)
            threading.Thread(target=watch, name="distinf-progress", daemon=True).start()

    def _update(self, event: Event) -> None:
        with self._lock:
            self._counts[event.kind] = self._counts.get(event.kind, 0) + 1
            self._describe()
            self._bar.update(1 if event.kind == "write" else 0)

    def _describe(self) -> None:
        states = "forecast" if self._counts["forecast"] else "read"
        state = f"{states} {self._counts[states]}, diagnosed {self._counts['diagnose']}"
        if self._busy is not None:
            busy, workers = self._busy()
            state += f", workers busy {busy}/{workers}"
        if self._waits:
            state += f", {self._waits}"
        self._bar.set_postfix_str(state, refresh=False)

    def _watch(self, waiting: Callable[[], str]) -> None:
        """Redraw when a wait for workers begins or ends: there are no events in between."""
        while not self._end.wait(_LOOK_SECONDS):
            if (waits := waiting()) != self._waits:
                with self._lock:
                    self._waits = waits
                    self._describe()
                    self._bar.refresh()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        with self._lock:
            self._bar.close()


def summarize(
    events: Iterable[Event] | Totals,
    wall: float,
    workers: tuple[int, ...],
    writers: int = 2,
    cores: int | None = None,
    engine: str = "tensorpipe",
) -> str:
    """Describe in a few lines where the time went, what limited the run and what would help.

    Parameters
    ----------
    events : Iterable[Event] | Totals
        Events of the run, or their totals.
    wall : float
        Seconds from the first event to the last write.
    workers : tuple[int, ...]
        Ranks that ran diagnostics.
    writers : int, optional
        Threads that wrote, by default 2.
    cores : int | None, optional
        CPU cores that all ranks share; by default None: they compute elsewhere.
    engine : str, optional
        ``runtime.engine``, whose key for the number of workers is named.
    """
    totals = events if isinstance(events, Totals) else Totals.of(events)
    wall = max(wall, 1e-9)
    seconds, nbytes = totals.seconds, totals.nbytes
    states = "forecast" if totals.counts["forecast"] else "read"
    drivers = f" on {len(totals.steps)} drivers" if len(totals.steps) > 1 else ""
    lines = [
        f"Wall time {wall:.1f} s: {states} {seconds[states]:.1f} s{drivers}, "
        f"diagnostics {seconds['diagnose']:.1f} s on {len(workers)} worker(s), "
        f"writing {seconds['write']:.1f} s"
    ]
    lines += [
        f"  rank {rank}: {totals.calls[rank]} calls, busy {100 * totals.busy[rank] / wall:.0f} %"
        for rank in sorted({*workers, *totals.calls})
    ]
    if drivers:
        lines.append(
            f"  steps: {', '.join(f'{n} on rank {r}' for r, n in sorted(totals.steps.items()))}"
        )
    lines.append(
        f"Moved {_size(nbytes['diagnose'])} to the workers and {_size(totals.nbytes_out)} back; "
        f"wrote {_size(nbytes['write'])} (uncompressed)"
    )
    work = totals.work(writers)
    if work is None:
        return "\n".join(lines)
    count, in_process = max(1, len(workers)), workers == (0,)
    if not in_process:
        best = ideal(work, count)
        lines.append(
            f"Workers were busy {100 * seconds['diagnose'] / (count * wall):.0f} % of the time; "
            f"at these models' speed the run takes at least {best:.1f} s with {count} worker(s)"
        )
        ranks = len({*workers, *totals.steps, 0})
        lines.append(_one_process(serial(work), wall, ranks, cores))
    lines.append(advise(work, count, in_process, engine))
    return "\n".join(lines)


def _one_process(alone: float, wall: float, ranks: int, cores: int | None) -> str:
    """Say what the run would have taken in one process, from the times of its own calls."""
    measured = "the sum of the measured times of these calls"
    if cores is None or alone <= cores * wall:
        return f"One process would take {alone:.1f} s, {alone / wall:.1f} times as long: {measured}"
    return (
        f"One process would take at most {cores * wall:.1f} s, {cores:.1f} times as long: what "
        f"{cores} cores can do in this time. {ranks} ranks shared them, so {measured} is more: "
        f"{alone:.1f} s"
    )


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"
