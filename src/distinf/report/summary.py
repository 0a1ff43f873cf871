"""The summary of a run that has ended."""

from __future__ import annotations

from collections.abc import Iterable

from distinf.report.advice import advise, ideal, serial
from distinf.report.events import Event, Totals


def summarize(
    events: Iterable[Event] | Totals,
    wall: float,
    workers: tuple[int, ...],
    writers: int = 2,
    cores: int | None = None,
    engine: str = "tensorpipe",
    together: tuple[int, int] = (1, 1),
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
    together : tuple[int, int], optional
        Ranks that run the prognostic, and each diagnostic, together; by default 1 each.
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
        ranks = len({*workers, *totals.steps, 0} - {0}) * together[1] + together[0]
        lines.append(_one_process(serial(work), wall, ranks, cores))
    lines.append(advise(work, count, in_process, engine, together))
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
