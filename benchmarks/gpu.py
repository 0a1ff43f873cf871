"""What farming out costs and gains on GPUs; one is enough, its ranks then share it.

    python benchmarks/gpu.py                      # every figure, as a table
    python benchmarks/gpu.py --only transfer step --ranks 3 --json gpu.json
    python benchmarks/gpu.py --rehearse           # tiny, on whatever there is: figures mean nothing

Each figure comes from processes of its own. With several ranks on one GPU the diagnostics take
their time from the prognostic, so that only `transfer` and `step` say something about the farm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distinf import DistributedInference, Runtime, session
from distinf.session.session import current_session

ROOT = Path(__file__).parent.parent
WAIT_SECONDS = 1800.0
Row = dict[str, Any]


class Nothing:
    """Takes a state and gives back one number: all that is left is the way there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten()[:1]


class Loaded:
    """An Earth2Studio diagnostic from a package, at the coords that it asks for."""

    def __init__(self, name: str, package: str) -> None:
        import earth2studio.models.dx as models
        from earth2studio.models.auto import Package

        self.model = getattr(models, name).load_model(Package(package))

    def to(self, device: torch.device) -> Loaded:
        self.model = self.model.to(device).eval()
        return self

    def input_coords(self) -> Any:
        return self.model.input_coords()

    def forward(self, x: torch.Tensor, coords: Any) -> torch.Tensor:
        return self.model(x, coords)[0]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device, times: int) -> float:
    """Median seconds of one of some calls, each waited for."""
    taken = []
    for _ in range(times + 1):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])  # the first one warms up


def transfer(options: Row) -> Row:
    """Rate from the driver to a worker, over the rate at which the device copies in its memory."""
    device, n = current_session().device, options["bytes"] // 4
    x = torch.ones(n, device=device)
    other = torch.empty_like(x)
    own = n * 4 / seconds_of(lambda: other.copy_(x), device, 10)
    host = torch.empty(n, pin_memory=device.type == "cuda")
    down = n * 4 / seconds_of(lambda: host.copy_(x, non_blocking=True), device, 10)
    with DistributedInference(Nothing) as infer:
        for _ in range(3):
            infer.submit(x).result(WAIT_SECONDS)
        began = time.perf_counter()
        futures = [infer.submit(x) for _ in range(options["sends"])]
        for future in futures:
            future.result(WAIT_SECONDS)
        rate = n * 4 * options["sends"] / (time.perf_counter() - began)
    return {
        "GB/s": rate / 1e9,
        "device copy GB/s": own / 1e9,
        "to pinned host GB/s": down / 1e9,
        "share of device copy": rate / own,
    }


class Prognostic:
    """Products of matrices, on the device, that write the state over the one before."""

    def __init__(self, device: torch.device, size: int, shape: list[int]) -> None:
        self.a = torch.randn(size, size, device=device) / size**0.5
        self.x = torch.zeros(shape, device=device)

    def step(self, products: int) -> torch.Tensor:
        b = self.a
        for _ in range(products):
            b = b @ self.a
        return self.x.add_(b[0, 0])


def step(options: Row) -> Row:
    """The prognostic's own step with every state sent to a worker, over its step alone."""
    device = current_session().device
    prognostic = Prognostic(device, options["size"], options["shape"])
    products, nsteps = options["products"], options["nsteps"]

    def rollout(each: Callable[[torch.Tensor], Any]) -> float:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(nsteps):
            each(prognostic.step(products))
        synchronize(device)
        return (time.perf_counter() - began) / nsteps

    with DistributedInference(Nothing) as infer:
        alone, farmed, submits = [], [], []

        def submit(x: torch.Tensor) -> Future[Any]:
            began = time.perf_counter()
            future = infer.submit(x)
            submits.append(time.perf_counter() - began)
            return future

        for _ in range(options["repeats"] + 1):  # interleaved, the first of each warms up
            alone.append(rollout(lambda x: None))
            farmed.append(rollout(submit))
    alone_s, farmed_s = statistics.median(alone[1:]), statistics.median(farmed[1:])
    return {
        "step alone ms": alone_s * 1e3,
        "with the farm ms": farmed_s * 1e3,
        "ratio": farmed_s / alone_s,
        "submit ms": statistics.median(submits) * 1e3,
    }


def real(options: Row) -> Row:
    """Steps per second of FourCastNet and a diagnostic behind it, both from packages."""
    from earth2studio.models.auto import Package
    from earth2studio.models.px import FCN

    device = current_session().device
    prognostic = FCN.load_model(Package(options["fcn"])).to(device)
    coords = of_a_step(prognostic.input_coords())
    x = torch.randn([len(v) for v in coords.values()], device=device)
    with DistributedInference(Loaded, options["diagnostic"], options["package"]) as infer:
        states = prognostic.create_iterator(x, coords)
        infer.submit(*next(states)).result(WAIT_SECONDS)
        return rate(lambda: infer.submit(*next(states)), options["nsteps"])


def corrdiff(options: Row) -> Row:
    """Calls per second of a generative model, on states of its own grid that are there at once."""
    device = current_session().device
    with DistributedInference(Loaded, "CorrDiff", options["package"]) as infer:
        coords = of_a_step(infer.call_func("input_coords", rank=infer.remote_ranks[0]))
        x = torch.randn([len(v) for v in coords.values()], device=device)
        infer.submit(x, coords).result(WAIT_SECONDS)
        return rate(lambda: infer.submit(x, coords), options["nsteps"])


def of_a_step(coords: Any) -> Any:
    """Coordinates of one state, from those that a model asks for."""
    step = {
        "time": np.array(["2023-06-01"], dtype="datetime64[ns]"),
        "lead_time": np.array([0], dtype="timedelta64[ns]"),
    }
    rest = {key: values for key, values in coords.items() if key not in ("batch", *step)}
    return OrderedDict(**step, **rest)


def rate(submit: Callable[[], Future[Any]], nsteps: int) -> Row:
    """Submit so many steps and wait for all results."""
    began = time.perf_counter()
    for future in [submit() for _ in range(nsteps)]:
        future.result(WAIT_SECONDS)
    wall = time.perf_counter() - began
    return {"steps/s": nsteps / wall, "s a step": wall / nsteps}


MEASURES = {"transfer": transfer, "step": step, "real": real, "corrdiff": corrdiff}


def cases(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """What is measured, each with its number of ranks and its carrier."""
    small = args.rehearse
    ranks, carriers = args.ranks, ["host"] if not torch.cuda.is_available() else ["host", "cuda"]
    if "transfer" in args.only:
        for size in [4_000_000] if small else [4_000_000, 83_000_000, 300_000_000]:
            for carrier in carriers:
                sends = 4 if small else 40
                options = {"bytes": size, "sends": sends}
                yield row("transfer", f"{size / 1e6:g} MB", 2, carrier, options)
    if "step" in args.only:
        shape = [26, 72, 144] if small else [73, 721, 1440]
        for carrier in carriers:
            options = {
                **{"shape": shape, "size": 64 if small else 8192, "products": 2 if small else 8},
                **{"nsteps": 4 if small else 40, "repeats": 1 if small else 5},
            }
            yield row("step", f"{shape[0]} variables", ranks, carrier, options)
    if "real" in args.only:
        package = {"fcn": str(folder / "fcn"), "nsteps": 1 if small else 20}
        kind = "ClimateNet" if small else "PrecipitationAFNO"
        package.update(diagnostic=kind, package=str(folder / kind))
        for n in (1, ranks):
            yield row("real", f"FourCastNet, {kind}", n, "auto", package)
    if "corrdiff" in args.only:
        options = {"package": str(folder / "corrdiff"), "nsteps": 1 if small else 6}
        for n in (1, ranks):
            yield row("corrdiff", "64 x 64" if small else "448 x 448, 18 steps", n, "auto", options)


def row(measure: str, what: str, nproc: int, carrier: str, options: Row) -> Row:
    return {
        "measure": measure,
        "what": what,
        "ranks": nproc,
        "carrier": carrier,
        "options": options,
    }


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Make the packages that the models are loaded from."""
    sys.path.insert(0, str(ROOT))
    from testing import packages

    if "real" in args.only and args.rehearse:
        packages.fcn(folder / "fcn")
        packages.climatenet(folder / "ClimateNet")
    elif "real" in args.only:
        packages.fcn(folder / "fcn", packages.FULL_AFNO)
        packages.precipitation(folder / "PrecipitationAFNO")
    if "corrdiff" in args.only:
        packages.corrdiff(folder / "corrdiff", **({} if args.rehearse else packages.FULL_CORRDIFF))


def measure(case: Row) -> None:
    """Make one measurement in a session of its own; prints it as JSON."""
    runtime = Runtime(carrier=case["carrier"], driver_works="never", start_timeout=600.0)
    with session(runtime, nproc=case["ranks"]) as rank:
        if rank == 0:
            found = MEASURES[case["measure"]](case["options"])
            here = current_session()
            carrier = here.farm.transport.carrier
            print(json.dumps({"carrier": carrier, "device": str(here.device), **found}))


def show(rows: list[Row]) -> None:
    for case in rows:
        numbers = "   ".join(f"{key} {value:.4g}" for key, value in case["found"].items())
        print(
            f"{case['measure']:9} {case['what']:32} {case['ranks']:2} ranks  {case['took']:10} ",
            end="",
        )
        print(case["error"] or numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--ranks", type=int, default=max(3, torch.cuda.device_count()))
    parser.add_argument("--rehearse", action="store_true", help="tiny, on whatever there is")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        measure(json.loads(args.case))
        return
    if args.ranks < 2:
        parser.error("--ranks: a driver and at least one worker")
    if not torch.cuda.is_available() and not args.rehearse:
        sys.exit("benchmarks/gpu.py: no GPU is here, so nothing was measured (--rehearse runs it)")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        prepare(args, Path(scratch))
        for case in cases(args, Path(scratch)):
            command = [sys.executable, __file__, "--case", json.dumps(case)]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=dict(os.environ),
                timeout=2 * WAIT_SECONDS,
                check=False,
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            found = json.loads(lines[-1]) if done.returncode == 0 and lines else {}
            error = "" if found else (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            took, device = found.pop("carrier", "-"), found.pop("device", "-")
            rows.append({**case, "took": took, "device": device, "found": found, "error": error})
            show(rows[-1:])
            sys.stdout.flush()
    if args.json:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        args.json.write_text(json.dumps({"gpu": gpu, "torch": torch.__version__, "rows": rows}))
    if any(case["error"] for case in rows):
        sys.exit("benchmarks/gpu.py: some measurements failed")


if __name__ == "__main__":
    main()
