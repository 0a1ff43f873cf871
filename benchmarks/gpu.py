"""What farming out costs and gains on GPUs; one is enough, its ranks then share it.

    python -m benchmarks.gpu                      # everything, the most important first
    python -m benchmarks.gpu --only transfer step --ranks 3 --json gpu.json
    python -m benchmarks.gpu --rehearse           # tiny, on whatever there is: figures mean nothing

Each case runs in processes of its own and has its own time limit. The JSON file is written after
each case. With several ranks on one GPU the diagnostics take their time from the prognostic, which
`emulated` takes into account. `tests` runs tests/gpu.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import finish
from benchmarks.gpu_cases import MEASURES
from distinf import Runtime, session
from distinf.session.session import current_session

Row = dict[str, Any]
PARTS = ["tests", *MEASURES]
STATE = [73, 720, 1440]
WAYS: dict[str, Row] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "compiled": {"compiled": True},
}


def cases(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """What is run, each with its number of ranks, its carrier and its time limit in seconds."""
    small, ranks = args.rehearse, args.ranks
    carriers = ["cuda", "host"] if torch.cuda.is_available() else ["host"]
    if "tests" in args.only:
        yield row("tests", "tests/gpu", 0, "-", 300, {})
    if "accuracy" in args.only:
        for model in ["ClimateNet"] if small else ["PrecipitationAFNO", "WindgustAFNO"]:
            for what, how in list(WAYS.items())[: 2 if small else None]:
                options = {"model": model, "package": str(folder / model), "how": how}
                yield row("accuracy", f"{model}, {what}", 1, "auto", 150, options)
    if "transfer" in args.only:
        for nbytes in [4_000_000] if small else [302_745_600, 83_000_000, 4_000_000]:
            for carrier in carriers:
                options = {"nbytes": nbytes, "sends": 4 if small else 20}
                yield row("transfer", f"{nbytes / 1e6:.0f} MB", 2, carrier, 60, options)
    state = {"shape": [7, 72, 144], "size": 64} if small else {"shape": STATE, "size": 4096}
    if "step" in args.only:
        long = {"nsteps": 4, "repeats": 1} if small else {"nsteps": 20, "repeats": 5}
        for carrier in carriers:
            options = {"seconds": 0.05, **state, **long}
            yield row("step", f"{state['shape']}", min(ranks, 3), carrier, 60, options)
    if "emulated" in args.only:
        for busy, nsteps in ((0.01, 60), (0.2, 20)):
            options = {"seconds": 0.05, "call": 0.2, "busy": busy, **state, "nsteps": nsteps}
            if small:
                options.update(seconds=0.002, call=0.004, busy=busy / 50, nsteps=2)
            for carrier in carriers:
                what = f"50 + 200 ms, {busy * 1000:g} of them on the GPU"
                yield row("emulated", what, max(ranks, 3 if small else 6), carrier, 90, options)
    if "real" in args.only:
        package = {"fcn": str(folder / "fcn"), "nsteps": 1 if small else 20}
        kind = "ClimateNet" if small else "PrecipitationAFNO"
        package.update(diagnostic=kind, package=str(folder / kind))
        for n in (1, ranks):
            yield row("real", f"FourCastNet, {kind}", n, "auto", 120, package)
    if "corrdiff" in args.only:
        options = {"package": str(folder / "corrdiff"), "nsteps": 1 if small else 4}
        what = "64 x 64" if small else "448 x 448, 18 steps"
        for n in (1, ranks):
            yield row("corrdiff", what, n, "auto", 120, options)


def row(part: str, what: str, nproc: int, carrier: str, limit: float, options: Row) -> Row:
    """Describe one case."""
    return {
        "part": part,
        "what": what,
        "ranks": nproc,
        "carrier": carrier,
        "limit": limit,
        "options": options,
    }


def make_packages(args: argparse.Namespace, folder: Path) -> None:
    """Make the packages that the models are loaded from; a case fails without its own."""
    from testing import packages

    found: list[Callable[[], Any]] = []
    needed = set(args.only)
    if "real" in needed:
        size = packages.SMALL_AFNO if args.rehearse else packages.FULL_AFNO
        found.append(lambda: packages.fcn(folder / "fcn", size))
    if needed & {"real", "accuracy"} and args.rehearse:
        found.append(lambda: packages.climatenet(folder / "ClimateNet"))
    elif needed & {"real", "accuracy"}:
        found.append(lambda: packages.precipitation(folder / "PrecipitationAFNO"))
    if "accuracy" in needed and not args.rehearse:
        found.append(lambda: packages.wind_gust(folder / "WindgustAFNO"))
    if "corrdiff" in needed:
        full = {} if args.rehearse else packages.FULL_CORRDIFF
        found.append(lambda: packages.corrdiff(folder / "corrdiff", **full))
    for make in found:
        try:
            make()
        except Exception:
            traceback.print_exc()


def measure(case: Row) -> None:
    """Run one case in a session of its own; prints its figures as JSON."""
    runtime = Runtime(carrier=case["carrier"], driver_works="never", start_timeout=case["limit"])
    with session(runtime, nproc=case["ranks"]) as rank:
        if rank == 0:
            found = MEASURES[case["part"]](**case["options"])
            here = current_session()
            took = here.farm.transport.carrier
            print(json.dumps({"took": took, "device": str(here.device), **found}))


def run(case: Row) -> Row:
    """Run one case in new processes, until its time limit; return it with what was found."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--case", json.dumps(case)]
    if case["part"] == "tests":
        command = [sys.executable, "-m", "pytest", "-v", "-n", "6", "--dist", "load", "tests/gpu"]
        command += ["--deselect", "tests/gpu/test_gpu.py::test_the_benchmark_runs"]
    began = time.perf_counter()
    status, out, err = finish(command, case["limit"])
    if status is None:
        err += f"\nnot done in {case['limit']:g} s"
    found: Row = {}
    if case["part"] == "tests":
        found = {"said": out.splitlines()[-120:]}
    elif status == 0:
        found = json.loads([line for line in out.splitlines() if line.startswith("{")][-1])
    done = {**case, "seconds": round(time.perf_counter() - began, 1), "error": "", "found": found}
    done["took"], done["device"] = found.pop("took", "-"), found.pop("device", "-")
    if status != 0:
        done["error"] = (err.strip().splitlines() or out.splitlines()[-1:] or ["no word"])[-1]
        done["stderr"] = err.splitlines()[-60:]
    return done


def show(case: Row) -> None:
    """Print one case as a line, of failed tests more."""
    head = f"{case['part']:9} {case['what']:34} {case['ranks']:2} ranks  {case['took']:34} "
    if case["part"] == "tests":
        print(head, *case["found"]["said"], sep="\n", flush=True)
        return
    numbers = [f"{name} {value:.4g}" for name, value in case["found"].items()]
    print(head + (case["error"] or "   ".join(numbers)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--ranks", type=int, default=max(3, torch.cuda.device_count()))
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds; begin none after it")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on whatever there is")
    parser.add_argument("--json", type=Path, help="write the rows there, too, after each case")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        measure(json.loads(args.case))
        return
    if args.ranks < 2:
        parser.error("--ranks: a driver and at least one worker")
    if not torch.cuda.is_available() and not args.rehearse:
        sys.exit("benchmarks/gpu.py: no GPU is here, so nothing was measured (--rehearse runs it)")
    until = time.monotonic() + args.budget
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    done: list[Row] = []

    def note(case: Row) -> None:
        done.append(case)
        show(case)
        if args.json:
            told = {"gpu": gpu, "torch": torch.__version__, "rows": done}
            args.json.write_text(json.dumps(told))

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        wanted = list(cases(args, Path(scratch)))
        made = pool.submit(make_packages, args, Path(scratch))
        tests = [case for case in wanted if case["part"] == "tests"]
        for case in pool.map(run, tests):
            note(case)
        made.result()
        for case in wanted:
            if case in tests:
                continue
            if time.monotonic() > until:
                note({**case, "took": "-", "error": "left out: no time left", "found": {}})
            else:
                note(run(case))
    if any(case["error"] for case in done):
        sys.exit("benchmarks/gpu.py: some cases failed")


if __name__ == "__main__":
    main()
