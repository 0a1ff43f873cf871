"""Whether the driver's memory grows with the length of the forecast.

Small states, models that take no time, every result written, as recipes do; each length in fresh
processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import answer, parser, run_fresh, save, table

NBYTES, ROWS, TARGET = 65_536, 16, 0.05


def resident() -> dict[str, float]:
    """Resident memory of this process in MB: now, and at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return {
        "now": int(status["VmRSS"].split()[0]) * 1024 / 1e6,
        "peak": int(status["VmHWM"].split()[0]) * 1024 / 1e6,
    }


def measure(steps: int, workers: int, engine: str) -> dict[str, Any]:
    from benchmarks import emulated
    from distinf import DistributedInference

    found: dict[str, Any] = {}
    with emulated.session_of(workers, engine, 300.0) as rank:
        if rank == 0:
            with DistributedInference(emulated.Sleeping, 0.0, ROWS) as infer:
                emulated.warm_up(infer, NBYTES, ROWS, workers)
                before = resident()
                done = emulated.run(infer, steps, 0.0, NBYTES, ROWS, progress=True)
            after = resident()
            found = {
                "steps": steps,
                "peak MB": after["peak"],
                "before the run MB": before["now"],
                "after it MB": after["now"],
                "wall s": done.wall,
            }
    return found


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, nargs="+", default=[40, 4000])
    made.add_argument("--workers", type=int, default=1)
    made.add_argument("--engine", choices=["tensorpipe", "ray"], default="tensorpipe")
    args = made.parse_args()
    if args.child:
        answer(measure(**json.loads(args.child)))
        return
    rows = []
    for steps in args.steps:
        task = {"steps": steps, "workers": args.workers, "engine": args.engine}
        rows.append(run_fresh("benchmarks.memory", task, 580))
    print(table(rows))
    ratio = rows[-1]["peak MB"] / rows[0]["peak MB"]
    print(
        f"Peak of {rows[-1]['steps']} steps over that of {rows[0]['steps']}: {ratio:.3f} "
        f"(wanted: within {TARGET:.0%})"
    )
    save(args.json, {"rows": rows, "ratio": ratio})


if __name__ == "__main__":
    main()
