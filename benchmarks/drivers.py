"""Members on 1 to 4 drivers of four ranks, and as many as `auto` chooses, beside the best of them.

Each prognostic and each diagnostic sleeps, so that four ranks do not need four cores. Wall times
are from the first read to the last write.

::

    uv run python -m benchmarks.drivers
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.commands import run_main
from benchmarks.common import Repeats, parser

TIMEOUT = 500.0
RANKS, MEMBERS = 4, 8
# Seconds of a step and of a diagnostic call: the prognostic is dear, both are, the diagnostic is.
PACES = ((0.4, 0.1), (0.2, 0.2), (0.05, 0.4))


def wall(folder: Path, drivers: int | str, step: float, call: float, nsteps: int) -> float:
    """Seconds of a run."""
    run = run_main(
        folder,
        [
            *("prognostic.nlat=32", "prognostic.nlon=64", "recipe=diagnostic"),
            *("prognostic._target_=testing.forecasts.Slow", f"+prognostic.seconds={step}"),
            *("~diagnostic.wind_decomposition", "~diagnostic.error_growth"),
            "+diagnostic.sleeping._target_=testing.faulty.Faulty",
            "+diagnostic.sleeping.faults={}",
            f"+diagnostic.sleeping.seconds={call}",
            f"parameters.ensemble={MEMBERS}",
            f"parameters.nsteps={nsteps}",
            f"runtime.nproc={RANKS}",
            f"runtime.drivers={drivers}",
        ],
        TIMEOUT,
    )
    begun = [event.start for event in run.events if event.kind == "read"]
    return max(event.end for event in run.events if event.kind == "write") - min(begun)


def main() -> None:
    given = parser(__doc__, repeats=1, steps=20).parse_args()
    for step, call in PACES:
        repeats = Repeats(f"{step} s and {call} s", "s")
        with tempfile.TemporaryDirectory(prefix="distinf-benchmark-") as home:
            for repeat in range(given.repeats):
                found = {}
                for drivers in (*range(1, RANKS + 1), "auto"):
                    folder = Path(home, f"{repeat} {drivers}")
                    seconds = wall(folder, drivers, step, call, given.steps)
                    found[f"drivers={drivers}"] = seconds
                best = min(value for name, value in found.items() if name != "drivers=auto")
                repeats.add(1, **found, best=best)
        repeats.compare("drivers=auto", "best", "at most 1.1")
        repeats.show(given.json)


if __name__ == "__main__":
    main()
