"""Real runs of sleeping models, next to their simulation."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import answer, run_fresh
from benchmarks.simulation import Costs, floor, simulate

__all__ = ["validate"]

# A step and a call are long beside what the machine's other work takes from them.
STATES, PROGNOSTIC, DIAGNOSTIC = 81, 0.03, 0.4
NBYTES, ROWS = 1_000_000, 64
CALIBRATION_WORKERS, CALIBRATION_STATES = 4, 41


def validate(workers: Sequence[int] | None = None) -> dict[str, Any]:
    """Run with each number of workers, and predict its time from the costs of one other run.

    Parameters
    ----------
    workers : Sequence[int] | None, optional
        Numbers of workers, by default 1, 2, 4, 8 and 16.
    """
    task = {"workers": list(workers or (1, 2, 4, 8, 16))}
    return run_fresh("benchmarks.validation", task, timeout=580)


def measure(workers: Sequence[int]) -> dict[str, Any]:
    """Do the runs in this process and in ranks of its own."""
    from benchmarks import emulated
    from distinf import DistributedInference, Runtime, session

    most = max(CALIBRATION_WORKERS, *workers)
    with session(Runtime(start_timeout=500), nproc=most + 1) as rank:
        if rank != 0:
            return {}
        runs: list[dict[str, Any]] = []
        costs: Costs | None = None
        for count in (0, *workers):
            ranks = list(range(1, (count or CALIBRATION_WORKERS) + 1))
            with DistributedInference(
                emulated.Sleeping, DIAGNOSTIC, ROWS, remote_ranks=ranks
            ) as infer:
                emulated.warm_up(infer, NBYTES, ROWS)
                if costs is None:
                    costs = calibrate(infer)
                    continue
                done = emulated.run(infer, STATES, PROGNOSTIC, NBYTES, ROWS)
            predicted = simulate(costs, STATES, count).wall
            runs.append(
                {
                    "workers": count,
                    "measured s": done.wall,
                    "predicted s": predicted,
                    "predicted / measured": predicted / done.wall,
                    "ideal s": floor(costs, STATES, count),
                }
            )
        assert costs is not None
    return {"runs": runs, "costs": dataclasses.asdict(costs), "states": STATES}


def calibrate(infer: Any) -> Costs:
    """Measure the costs in one run, and in single calls on workers that have nothing else."""
    from benchmarks import emulated
    from distinf.session.session import current_session

    single = []
    for step in range(8):
        begun, busy = time.perf_counter(), current_session().farm.events.totals.seconds["diagnose"]
        infer.submit(*emulated.state(step, NBYTES, ROWS)).result()
        busy = current_session().farm.events.totals.seconds["diagnose"] - busy
        single.append(time.perf_counter() - begun - busy)
    done = emulated.run(infer, CALIBRATION_STATES, PROGNOSTIC, NBYTES, ROWS)
    work = done.totals.work(emulated.WRITERS)
    assert work is not None
    return Costs(
        prognostic=work.prognostic,
        diagnostic=work.diagnostic,
        bytes_in=NBYTES,  # their time is part of the latency
        bytes_out=4 * ROWS * emulated.COLUMNS,
        latency=max(0.0, statistics.median(single) - done.submit),
        submit=done.submit,
        result=max(0.0, done.own - done.submit),
        write=work.write,
        writers=emulated.WRITERS,
    )


if __name__ == "__main__":
    import json
    import sys

    answer(measure(json.loads(sys.argv[2])["workers"]))
