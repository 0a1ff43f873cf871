"""Seconds from the command to the first task, and what they go into.

For the embedded default, and for FourCastNet and ClimateNet with seeded weights.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.commands import Command, fcn_and_climatenet, run_main, shallow_water
from benchmarks.common import parser, save, table
from distinf.report.events import Event

CASES: dict[str, Callable[[Path], list[str]]] = {
    "shallow water": lambda home: shallow_water(1),
    "FCN, ClimateNet": lambda home: fcn_and_climatenet(home, 1),
}


def milestones(run: Command) -> dict[str, float]:
    """Divide the time to the first task: each part from the end of the one before."""
    task, state, read = run.first("diagnose"), run.first("forecast"), run.first("read")
    loads = {event.task: event for event in run.events if event.kind == "load"}
    met = min(event.start for event in loads.values())
    loaded = max(event.end for event in loads.values())
    return {
        "first task s": task.start - run.begun,
        "python, hydra s": run.configured - run.begun,
        "imports, ranks meet s": met - run.configured,
        "models s": loaded - met,
        "(prognostic) s": _length(loads["prognostic"]),
        "(diagnostic) s": _length(loads["diagnostics"]),
        "store s": run.ready - loaded,
        "data s": read.end - run.ready,
        "first state s": state.end - read.end,
        "to the worker s": task.start - state.end,
    }


def _length(event: Event) -> float:
    return event.end - event.start


def imports(log: Path, most: int) -> list[dict[str, Any]]:
    """Add up ``-X importtime`` by package: own time of its modules, seconds."""
    own: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if found := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s*([\w.]+)", line):
            package = found[2].split(".")[0]
            own[package] += int(found[1])
            modules[package] += 1
    rows = [
        {"package": package, "own s": us / 1e6, "modules": modules[package]}
        for package, us in own.most_common(most)
    ]
    whole = {"package": "all", "own s": sum(own.values()) / 1e6, "modules": sum(modules.values())}
    return [*rows, whole]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--nproc", type=int, default=2, help="ranks, the driver included")
    made.add_argument("--runs", type=int, default=2, help="the first one may find cold files")
    made.add_argument("--imports", type=int, default=12, metavar="N", help="packages; 0: none")
    made.add_argument("--timeout", type=float, default=500.0, help="seconds for one run")
    made.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    args = made.parse_args()
    rows: list[dict[str, Any]] = []
    packages: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="distinf-benchmark-") as scratch:
        home = Path(scratch)
        cases = {name: CASES[name](home / "packages") for name in args.cases}
        for number in range(args.runs):
            for name, overrides in cases.items():
                folder = home / f"{name}-{number}"
                words = [*overrides, f"runtime.nproc={args.nproc}"]
                run = run_main(folder, words, args.timeout)
                rows.append({"case": name, "nproc": args.nproc, **milestones(run)})
                print(table(rows[-1:]), flush=True)
        for name, overrides in cases.items() if args.imports else ():
            # In one process, so that each import is told once.
            folder = home / f"{name}-imports"
            words = [*overrides, "runtime.nproc=1"]
            run_main(folder, words, args.timeout, PYTHONPROFILEIMPORTTIME="1")
            packages[name] = imports(folder / "stderr", args.imports)
    print(f"\n{table(rows)}")
    for name, found in packages.items():
        print(f"\nImports of {name}, in one process\n\n{table(found)}")
    save(args.json, {"rows": rows, "imports": packages})


if __name__ == "__main__":
    main()
