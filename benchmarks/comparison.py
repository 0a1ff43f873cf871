"""Run one workload by distinf and by its peers in turn, and print medians.

::

    uv run --group bench python -m benchmarks.comparison --variables 26 73 --repeats 5
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.workload import IDEAL, WORKERS

OURS = "distinf"
# The module that each contestant needs, and the command that starts it.
MPIRUN = ("mpirun", "-np", str(WORKERS + 1), "--oversubscribe", "--bind-to", "none")
CONTESTANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    OURS: ("distinf", ()),
    "distinf_on_ray": ("ray", ()),
    "plain_rpc": ("torch", ()),
    "ray": ("ray", ()),
    "dask": ("distributed", ()),
    "mpi": ("mpi4py", MPIRUN),
}
DEADLINE = 300.0


def missing(name: str) -> str | None:
    """Why a contestant cannot run here; None if it can."""
    module, launcher = CONTESTANTS[name]
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed (uv sync --group bench)"
    if launcher and shutil.which(launcher[0]) is None:
        return f"there is no {launcher[0]}"
    return None


def run(name: str, variables: int, folder: Path) -> dict[str, Any]:
    """Run the workload once, in processes of its own."""
    path = folder / f"{name}.zarr"
    shutil.rmtree(path, ignore_errors=True)
    given = ("--variables", str(variables), "--output", str(path))
    command = [sys.executable, "-m", f"benchmarks.contestants.{name}", *given]
    done = finish([*CONTESTANTS[name][1], *command])
    shutil.rmtree(path, ignore_errors=True)
    return done


def finish(command: list[str]) -> dict[str, Any]:
    """Run a command to its end and return the JSON object that it prints last."""
    environment = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
    }
    status, out, err = common.finish(command, DEADLINE, environment)
    if status is None:
        raise SystemExit(f"not ended after {DEADLINE:g} s: {' '.join(command)}")
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if status != 0 or not lines:
        raise SystemExit(f"{' '.join(command)} ended with {status}:\n{out}\n{err}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def table(variables: int, seconds: dict[str, list[float]]) -> str:
    medians = {name: statistics.median(walls) for name, walls in seconds.items()}
    peers = [wall for name, wall in medians.items() if not name.startswith(OURS)]
    lines = [f"V={variables}: ideal {IDEAL:.2f} s, medians of {len(next(iter(seconds.values())))}"]
    lines += [
        f"{'':14} {'wall s':>8} {'least':>8} {'most':>8} {'efficiency':>11} {'wall over ours':>15}"
    ]
    for name, wall in sorted(medians.items(), key=lambda item: item[1]):
        ratio = f"{wall / medians[OURS]:15.2f}" if OURS in medians else ""
        least, most = min(seconds[name]), max(seconds[name])
        lines.append(f"{name:14} {wall:8.2f} {least:8.2f} {most:8.2f} {IDEAL / wall:11.2f} {ratio}")
    if peers and OURS in medians:
        lines.append(f"{min(peers) / medians[OURS]:.2f} times as fast as the fastest peer")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variables", type=int, nargs="+", default=[26, 73])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help=f"some of {','.join(CONTESTANTS)}")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder")
    given = parser.parse_args()
    wanted = given.only.split(",") if given.only else list(CONTESTANTS)
    if unknown := sorted(set(wanted) - set(CONTESTANTS)):
        parser.error(f"--only {','.join(unknown)}: choose from {', '.join(CONTESTANTS)}")
    for name in list(wanted):
        if why := missing(name):
            print(f"{name} is skipped: {why}")
            wanted.remove(name)
    figures: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for variables in given.variables:
            seconds: dict[str, list[float]] = {name: [] for name in wanted}
            for repeat in range(given.repeats):
                for name in wanted:
                    done = run(name, variables, Path(folder))
                    seconds[name].append(done["seconds"])
                    print(f"V={variables} {repeat + 1} {name}: {done['seconds']:.3f} s", flush=True)
            figures[str(variables)] = seconds
            print(table(variables, seconds))
    if given.json:
        given.json.write_text(json.dumps({"ideal": IDEAL, "seconds": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
