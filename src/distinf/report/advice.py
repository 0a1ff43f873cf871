"""What a run could take at best, what limits it, and how many workers are worth having.

Pure arithmetic, without torch: the summary of a run and ``benchmarks/scale.py`` share it.

The prognostic's steps follow one another, diagnostic calls are shared by the workers. The last
state's call begins when that state is there, and its result is still to be written. So no run is
shorter than::

    start + max(prognostic + one diagnostic, all diagnostics / workers) + one write

With several drivers the steps are those of the driver that has most. Where all ranks are drivers,
it also runs the diagnostics of its states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

_HARDLY, _MUCH = 1.03, 1.2


@dataclass(frozen=True)
class Work:
    """The work of a run: numbers, and mean times in seconds.

    Parameters
    ----------
    states : int
        States of the prognostic, initial ones included.
    tasks : int
        Diagnostic calls.
    prognostic, diagnostic, write : float
        Time of a step, of a call, and of writing a result.
    start : float, optional
        Time until the first state is there, by default 0.
    writers : int, optional
        Results that are written at once, by default 1.
    reading : float, optional
        Time in which a worker reads a call's input beside the call before, by default 0.
    archive : bool, optional
        Whether there is no prognostic, by default False.
    blocks : int, optional
        Parts of the forecast that can run beside each other (times and members), by default 1.
    drivers : int, optional
        Ranks that share them, by default 1.
    at_home : bool, optional
        Whether each of these ranks runs the diagnostics of its own states, by default False.
    last_call, last_write : float | None, optional
        Time of the shortest call and write, since the last one may be as short; by default None:
        as all others.

    Raises
    ------
    ValueError
        If there is no state, task or writer, or a time is negative or not finite.
    """

    states: int
    tasks: int
    prognostic: float
    diagnostic: float
    write: float = 0.0
    start: float = 0.0
    writers: int = 1
    last_call: float | None = None
    last_write: float | None = None
    reading: float = 0.0
    archive: bool = False
    blocks: int = 1
    drivers: int = 1
    at_home: bool = False

    def __post_init__(self) -> None:
        for name in ("states", "tasks", "writers", "blocks", "drivers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("prognostic", "diagnostic", "write", "start", "reading"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be a number of seconds, at least 0, not {getattr(self, name)}"
                )

    @property
    def share(self) -> float:
        """Part of the states and tasks that the driver with most blocks has."""
        return math.ceil(self.blocks / self.drivers) / self.blocks

    @property
    def steps(self) -> float:
        """Seconds of all steps of the driver with most, one after the other."""
        return max(0.0, self.states * self.share - 1) * self.prognostic

    @property
    def stepped(self) -> float:
        """Seconds of all steps and of the last state's call."""
        return self.steps + (self.diagnostic if self.last_call is None else self.last_call)

    @property
    def writes(self) -> float:
        """Seconds of all writing."""
        return self.tasks * self.write

    @property
    def calls(self) -> float:
        """Seconds of all diagnostic calls, or of reading for them if that takes longer."""
        return self.tasks * max(self.diagnostic, self.reading)


def ideal(work: Work, workers: float) -> float:
    """Shortest possible time of a run, in seconds; ``workers`` may be ``math.inf``."""
    if work.at_home:
        computed = work.steps + work.share * work.calls
    else:
        computed = max(work.stepped, work.calls / workers)
    last_write = work.write if work.last_write is None else work.last_write
    return work.start + max(computed + last_write, work.writes / work.writers)


def serial(work: Work) -> float:
    """Seconds that one process takes that does everything in turn."""
    calls = work.tasks * (work.diagnostic + work.reading)
    return work.start + (work.states - 1) * work.prognostic + calls + work.writes


def shared(work: Work, drivers: int, ranks: int) -> float:
    """Shortest possible time of a run, in seconds, in which so many of the ranks are drivers."""
    at_home = drivers == ranks > 1
    workers = ranks if at_home or ranks == 1 else ranks - drivers
    return ideal(replace(work, drivers=drivers, at_home=at_home), workers)


def best_drivers(work: Work, ranks: int) -> int:
    """Find the fewest drivers that take hardly longer than the best number of them."""
    numbers = range(1, min(ranks, work.blocks) + 1)
    seconds = {drivers: shared(work, drivers, ranks) for drivers in numbers}
    enough = _HARDLY * min(seconds.values())
    return next(drivers for drivers in numbers if seconds[drivers] <= enough)


def why_so_many(work: Work, drivers: int, ranks: int) -> str:
    """Say how many of the ranks are drivers, and why."""
    who = f"{drivers} of {ranks} ranks forecast" if drivers < ranks else "each rank runs both"
    per_state = work.diagnostic * work.tasks / work.states
    alone = f", and {shared(work, 1, ranks):.1f} s with one driver" if drivers > 1 else ""
    return (
        f"{who}. A step takes {work.prognostic:.3g} s and the diagnostics of a state "
        f"{per_state:.3g} s, so what is left takes at least {shared(work, drivers, ranks):.1f} s"
        f"{alone}, where each rank has a GPU or core of its own"
    )


def fewest(seconds: Callable[[int], float], enough: float, most: int) -> int:
    """Find the fewest workers, at most ``most``, that take no longer than ``enough`` seconds.

    ``seconds`` returns the time with this many workers and must not grow with them.
    """
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if seconds(middle) <= enough:
            high = middle
        else:
            low = middle + 1
    return low


def keeping_up(work: Work) -> int:
    """Fewest workers with which the diagnostics end with the prognostic and its last task."""
    return fewest(lambda workers: work.calls / workers, work.stepped, work.tasks)


def limit(work: Work, workers: int) -> str:
    """Return what the ideal time mostly consists of.

    ``"prognostic"``, ``"diagnostics"``, ``"reading"``, ``"writing"``, or ``"one call"`` where there
    are so few steps that a single diagnostic call is the longest part.
    """
    calls = work.calls / workers
    if work.writes / work.writers > max(work.steps, calls):
        return "writing"
    if calls > work.stepped:
        return "reading" if work.reading > work.diagnostic else "diagnostics"
    return "prognostic" if 2 * work.steps >= work.stepped else "one call"


def advise(
    work: Work,
    workers: int,
    in_process: bool = False,
    engine: str = "tensorpipe",
    together: tuple[int, int] = (1, 1),
) -> str:
    """Say what limited a run and what would help; ``in_process``: one process did everything.

    ``together`` are the ranks that run the prognostic, and each diagnostic, together.
    """
    if in_process:
        gain = serial(work) / max(ideal(work, 1), 1e-9)
        return (
            "Limited by one process doing everything in turn. One worker more (runtime.nproc=2) "
            f"could make it up to {max(1.0, gain):.1f} times as fast."
        )
    if more := _other_drivers(work, workers, engine):
        return more
    what = limit(work, workers)
    enough = keeping_up(work)
    ranks = enough * together[1] + work.drivers - 1 + together[0]
    key = f"runtime.workers={enough}" if engine == "ray" else f"runtime.nproc={ranks}"
    if work.at_home:
        return (
            "Each rank forecast and diagnosed for itself: more ranks would help where there are as "
            "many GPUs or cores, and as many times and members."
        )
    if what == "writing":
        return "Limited by writing. A faster disk or fewer variables would help."
    if what == "reading":
        return (
            "Limited by reading. More workers would help, and files whose chunks hold one step and "
            "few variables."
        )
    if what == "diagnostics" and work.archive:
        return "Limited by the diagnostics. More workers would help."
    if what == "one call":
        return "Limited by the time of a single diagnostic call: more workers would not help."
    if what == "diagnostics":
        return (
            f"Limited by the diagnostics. {enough} workers ({key}) would keep "
            "up with the prognostic, where there are as many GPUs or cores."
        )
    if enough < workers:
        return (
            f"Limited by the prognostic. {enough} worker(s) ({key}) would "
            "keep up with it as well; a faster device for rank 0 would help."
        )
    return (
        "Limited by the prognostic. A faster device for rank 0 would help; more workers would not."
    )


def _other_drivers(work: Work, workers: int, engine: str) -> str:
    """Say which number of drivers would be much better; empty if none would."""
    if engine == "ray" or work.archive or work.blocks == 1:
        return ""
    ranks = workers if work.at_home else workers + work.drivers
    best = best_drivers(work, ranks)
    gain = shared(work, work.drivers, ranks) / max(shared(work, best, ranks), 1e-9)
    if gain < _MUCH:
        return ""
    return (
        f"With {best} driver(s) instead of {work.drivers} (runtime.drivers={best}) the run could "
        f"be up to {gain:.1f} times as fast, where each rank has a GPU or core of its own."
    )
