"""Real models over 1 to 3 ranks, next to a loop of Earth2Studio's alone in one process.

The shallow-water default with its two diagnostics, and FourCastNet then ClimateNet with seeded
weights. Times are from the first reading of data to the last write, without imports and loading;
all with one compute thread for each process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.commands import TIME, environment, fcn_and_climatenet, run_main, shallow_water
from benchmarks.common import ROOT, machine, parser, save, table
from distinf.report.advice import Work, ideal


def shallow_water_models(home: Path) -> tuple[Any, list[Any], Any, str]:
    from distinf.models import ErrorGrowth, GalewskyJet, ShallowWater, WindDecomposition

    prognostic = ShallowWater(nlat=256, nlon=512, level=850)
    return prognostic, [WindDecomposition([850]), ErrorGrowth()], GalewskyJet(), "2000-01-01"


def fcn_models(home: Path) -> tuple[Any, list[Any], Any, str]:
    from earth2studio.data import DataArrayFile
    from earth2studio.models.auto import Package
    from earth2studio.models.dx import ClimateNet
    from earth2studio.models.px import FCN

    prognostic = FCN.load_model(Package(str(home / "fcn")))
    diagnostic = ClimateNet.load_model(Package(str(home / "climatenet")))
    return prognostic, [diagnostic], DataArrayFile(str(home / "fields.nc")), TIME


MODELS: dict[str, Callable[[Path], tuple[Any, list[Any], Any, str]]] = {
    "shallow water": shallow_water_models,
    "FCN, ClimateNet": fcn_models,
}


def alone(case: str, home: str, nsteps: int, folder: str, threads: int) -> dict[str, Any]:
    """Run a case with Earth2Studio alone: its own workflow, or a loop where that fails.

    The workflow takes one diagnostic, so several are run by the loop.
    """
    import time

    import torch

    torch.set_num_threads(threads)
    prognostic, diagnostics, data, start = MODELS[case](Path(home))
    from earth2studio.io import ZarrBackend
    from earth2studio.run import diagnostic as workflow

    if len(diagnostics) == 1:
        begun = time.perf_counter()
        try:
            io = ZarrBackend(f"{folder}/alone.zarr", chunks={"time": 1, "lead_time": 1})
            workflow([start], nsteps, prognostic, diagnostics[0], data, io, verbose=False)
            return {"how": "run.diagnostic", "seconds": time.perf_counter() - begun}
        except Exception as error:
            print(f"{case}: run.diagnostic: {type(error).__name__}: {error}", file=sys.stderr)
    begun = time.perf_counter()
    loop(start, nsteps, prognostic, diagnostics, data, f"{folder}/loop.zarr")
    return {"how": "loop", "seconds": time.perf_counter() - begun}


def loop(
    start: str, nsteps: int, prognostic: Any, diagnostics: list[Any], data: Any, path: str
) -> None:
    """Do what ``earth2studio.run.diagnostic`` does, with the grids of the diagnostics' results."""
    from collections import OrderedDict

    import numpy as np
    import torch
    from earth2studio.data import fetch_data
    from earth2studio.io import ZarrBackend
    from earth2studio.utils.coords import map_coords, split_coords

    wanted = prognostic.input_coords()
    times = np.array([np.datetime64(start, "ns")])
    x, coords = fetch_data(data, times, wanted["variable"], wanted["lead_time"])
    states = prognostic.create_iterator(*map_coords(x, coords, wanted))
    io = ZarrBackend(path, chunks={"time": 1, "lead_time": 1})
    step = prognostic.output_coords(wanted)["lead_time"]
    with torch.inference_mode():
        for number in range(nsteps + 1):
            x, coords = next(states)
            for diagnostic in diagnostics:
                y, y_coords = diagnostic(*map_coords(x, coords, diagnostic.input_coords()))
                if number == 0:
                    total = OrderedDict(y_coords)
                    names = total.pop("variable")
                    total["lead_time"] = np.concatenate([step * i for i in range(nsteps + 1)])
                    io.add_array(total, names)
                io.write(*split_coords(y, y_coords))


def measure_alone(case: str, home: Path, nsteps: int, folder: Path, threads: int) -> dict[str, Any]:
    folder.mkdir(parents=True)
    task = [case, str(home), nsteps, str(folder), threads]
    command = [sys.executable, "-m", "benchmarks.real_models", "--child", json.dumps(task)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(folder), capture_output=True, text=True, timeout=590
    )
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    print(*(line for line in done.stderr.splitlines() if line.startswith(case)), sep="\n")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(case: str, home: Path, nsteps: int, nprocs: list[int]) -> list[dict[str, Any]]:
    """Run a case alone and over ranks."""
    overrides = shallow_water(nsteps)
    packages = home / "packages"
    if case != "shallow water":
        overrides = fcn_and_climatenet(packages, nsteps)
    rows: list[dict[str, Any]] = []
    single = measure_alone(case, packages, nsteps, home / case / "alone", 1)
    base, cores = single["seconds"], machine()["cores"]
    rows.append(_row(case, f"Earth2Studio alone ({single['how']})", base, base, None))
    work: Work | None = None
    for nproc in nprocs:
        run = run_main(
            home / case / f"nproc-{nproc}", [*overrides, f"runtime.nproc={nproc}"], timeout=590
        )
        totals = run.totals
        if work is None:
            work = totals.work(writers=2)
        assert work is not None
        if nproc == 1:
            best = work.start + work.steps + work.calls
        else:
            best = max(ideal(work, nproc - 1), work.start + (work.steps + work.calls) / cores)
        wall = totals.end - totals.start
        row = _row(case, f"distinf, nproc={nproc}", wall, base, best)
        # The same models: where these differ between the runs, so did what else the machine did.
        row["models s"] = totals.seconds["forecast"] + totals.seconds["diagnose"]
        rows.append(row)
        print(table(rows[-1:]), flush=True)
    return rows


def _row(case: str, how: str, wall: float, base: float, best: float | None) -> dict[str, Any]:
    return {
        "case": case,
        "how": how,
        "wall s": wall,
        "speed-up": base / wall,
        "ideal speed-up": None if best is None else base / best,
        "of the ideal": None if best is None else best / wall,
        "models s": None,
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--nsteps", type=int, default=24)
    made.add_argument("--nproc", type=int, nargs="+", default=[1, 2, 3])
    made.add_argument("--cases", nargs="+", choices=list(MODELS), default=list(MODELS))
    args = made.parse_args()
    if args.child:
        print(json.dumps(alone(*json.loads(args.child))), flush=True)
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="distinf-benchmark-") as scratch:
        for case in args.cases:
            rows += measure(case, Path(scratch), args.nsteps, sorted(args.nproc))
    print(f"\n{table(rows)}")
    print(
        f"\nThe ideal is that of {machine()['cores']} cores and of the models' times in the first "
        "of the runs with distinf."
    )
    save(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
