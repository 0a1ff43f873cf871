"""How busy 8, 16 and 32 workers are kept, and what they cost the driver.

Inputs of 1 MB, calls that sleep, states that are there at once: the ideal is rounds x seconds.
Each rank needs about half a gigabyte and 10 s of one core to start.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import answer, parser, run_fresh, save, table
from distinf.report.advice import Work, ideal

NBYTES, ROWS, TARGET = 1_000_000, 64, 0.9


def measure(
    workers: int, rounds: int, timeout: float, engine: str, seconds: float
) -> dict[str, Any]:
    """Run with ranks of this process's own, all of them warm."""
    from benchmarks import emulated
    from distinf import DistributedInference

    found: dict[str, Any] = {}
    with emulated.session_of(workers, engine, timeout) as rank:
        if rank == 0:
            with DistributedInference(emulated.Sleeping, seconds, ROWS) as infer:
                emulated.warm_up(infer, NBYTES, ROWS, workers)
                before = emulated.driver()
                done = emulated.run(infer, rounds * workers, 0.0, NBYTES, ROWS)
            best = ideal(Work(rounds * workers, rounds * workers, 0.0, seconds), workers)
            found = {
                "workers": workers,
                "wall s": done.wall,
                "ideal s": best,
                "ideal / wall": best / done.wall,
                "driver's ms a task": 1000 * done.own,
                **emulated.driver(),
                "resident MB before": before["resident MB"],
            }
    return found


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--workers", type=int, nargs="+", default=[8, 16, 32])
    made.add_argument("--rounds", type=int, default=15, help="calls of each worker")
    made.add_argument("--timeout", type=float, default=500.0, help="seconds until all have started")
    made.add_argument("--engine", choices=["tensorpipe", "ray"], default="tensorpipe")
    made.add_argument("--seconds", type=float, default=0.4, help="of a call")
    args = made.parse_args()
    if args.child:
        answer(measure(**json.loads(args.child)))
        return
    rows = []
    for workers in args.workers:
        names = ("rounds", "timeout", "engine", "seconds")
        task = {"workers": workers, **{name: getattr(args, name) for name in names}}
        rows.append(run_fresh("benchmarks.workers", task, args.timeout + 120))
        print(table(rows[-1:]), flush=True)
    print(f"\n{table(rows)}\n")
    print(f"Least ideal / wall: {min(row['ideal / wall'] for row in rows):.2f} (wanted: {TARGET})")
    save(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
