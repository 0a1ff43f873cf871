"""How busy 8, 16 and 32 workers are kept, and what they cost the driver.

Inputs of 1 MB, calls of 400 ms, states that are there at once: the ideal is rounds x 400 ms.
Each rank needs about half a gigabyte and 10 s of one core to start.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import answer, parser, run_fresh, save, table
from distinf.report.advice import Work, ideal

NBYTES, DIAGNOSTIC, ROWS, TARGET = 1_000_000, 0.4, 64, 0.9


def measure(workers: int, rounds: int, timeout: float) -> dict[str, Any]:
    """Run with ranks of this process's own, all of them warm."""
    from benchmarks import emulated
    from distinf import DistributedInference, Runtime, session

    found: dict[str, Any] = {}
    with session(Runtime(start_timeout=timeout), nproc=workers + 1) as rank:
        if rank == 0:
            with DistributedInference(emulated.Sleeping, DIAGNOSTIC, ROWS) as infer:
                emulated.warm_up(infer, NBYTES, ROWS)
                before = emulated.driver()
                done = emulated.run(infer, rounds * workers, 0.0, NBYTES, ROWS)
            best = ideal(Work(rounds * workers, rounds * workers, 0.0, DIAGNOSTIC), workers)
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
    args = made.parse_args()
    if args.child:
        answer(measure(**json.loads(args.child)))
        return
    rows = []
    for workers in args.workers:
        task = {"workers": workers, "rounds": args.rounds, "timeout": args.timeout}
        rows.append(run_fresh("benchmarks.workers", task, args.timeout + 120))
        print(table(rows[-1:]), flush=True)
    print(f"\n{table(rows)}\n")
    print(f"Least ideal / wall: {min(row['ideal / wall'] for row in rows):.2f} (wanted: {TARGET})")
    save(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
