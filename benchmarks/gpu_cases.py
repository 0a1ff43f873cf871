"""What `benchmarks.gpu` measures: each function runs on rank 0 of a session of its own."""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import torch

from distinf import DistributedInference
from distinf.diagnostics.chain import Chain, Link
from distinf.session.session import current_session

__all__ = ["MEASURES"]

WAIT_SECONDS = 600.0
Row = dict[str, Any]
TIME, LEAD = np.array(["2023-06-01"], "M8[ns]"), np.array([0], "m8[ns]")


class Nothing:
    """Takes a state and gives back one number: all that is left is the way there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten()[:1]


class Products:
    """Products of matrices that take a given time on the device, and a wait without it."""

    def __init__(self, seconds: float, size: int, wait: float = 0.0) -> None:
        self.seconds, self.size, self.wait = seconds, size, wait
        self.to(torch.device("cpu"))

    def to(self, device: torch.device) -> Products:
        self.device = device
        self.a = torch.randn(self.size, self.size, device=device) / self.size**0.5
        one = seconds_of(lambda: self.a @ self.a, device, 5)
        self.count = max(1, round(self.seconds / one))
        return self

    def run(self) -> torch.Tensor:
        b = self.a
        for _ in range(self.count):
            b = b @ self.a
        return b[0, 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x[0] + 0 * self.run()
        synchronize(self.device)
        time.sleep(self.wait)
        return y


class Prognostic(Products):
    """Products of matrices that write the state over the one before."""

    def __init__(self, seconds: float, size: int, shape: list[int]) -> None:
        self.x = torch.zeros(shape)
        super().__init__(seconds, size)

    def to(self, device: torch.device) -> Prognostic:
        super().to(device)
        self.x = self.x.to(device)
        return self

    def step(self) -> torch.Tensor:
        return self.x.add_(self.run())


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


def transfer(nbytes: int, sends: int) -> Row:
    """Rate from the driver to a worker, over those of the device's memory and of its bus."""
    device, n = current_session().device, nbytes // 4
    x = torch.ones(n, device=device)
    other = torch.empty_like(x)
    host = torch.empty(n, pin_memory=device.type == "cuda")
    rates = {
        "device copy GB/s": lambda: other.copy_(x),
        "to pinned host GB/s": lambda: host.copy_(x, non_blocking=True),
        "from pinned host GB/s": lambda: other.copy_(host, non_blocking=True),
    }
    own = {name: n * 4 / seconds_of(work, device, 10) / 1e9 for name, work in rates.items()}
    with DistributedInference(Nothing) as infer:

        def send(times: int) -> float:
            began = time.perf_counter()
            for future in [infer.submit(x) for _ in range(times)]:
                future.result(WAIT_SECONDS)
            return time.perf_counter() - began

        send(sends)  # channels open, memory is allocated
        rate = n * 4 * sends / statistics.median(send(sends) for _ in range(3)) / 1e9
    bus = min(own["to pinned host GB/s"], own["from pinned host GB/s"])
    return {
        **own,
        "GB/s": rate,
        "share of device copy": rate / own["device copy GB/s"],
        "share of the bus": rate / bus,
    }


def step(seconds: float, size: int, shape: list[int], nsteps: int, repeats: int) -> Row:
    """The prognostic's own step with every state sent to a worker, over its step alone."""
    device = current_session().device
    prognostic = Prognostic(seconds, size, shape).to(device)

    def rollout(each: Callable[[torch.Tensor], Any]) -> float:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(nsteps):
            each(prognostic.step())
        synchronize(device)
        return (time.perf_counter() - began) / nsteps

    submits: list[float] = []
    with DistributedInference(Nothing) as infer:

        def submit(x: torch.Tensor) -> Future[Any]:
            began = time.perf_counter()
            future = infer.submit(x)
            submits.append(time.perf_counter() - began)
            return future

        alone, farmed = [], []
        for _ in range(repeats + 1):  # interleaved, the first of each warms up
            alone.append(rollout(lambda x: None))
            farmed.append(rollout(submit))
    pairs = [ours / own for ours, own in zip(farmed[1:], alone[1:], strict=True)]
    return {
        "step alone ms": statistics.median(alone[1:]) * 1e3,
        "with the farm ms": statistics.median(farmed[1:]) * 1e3,
        "ratio": statistics.median(pairs),
        "submit ms": statistics.median(submits) * 1e3,
    }


def emulated(
    seconds: float, call: float, busy: float, size: int, shape: list[int], nsteps: int
) -> Row:
    """Wall time of a forecast with a diagnostic, over what the one GPU that all share needs.

    A call takes ``call`` seconds, of which the GPU computes ``busy``.
    """
    device = current_session().device
    prognostic = Prognostic(seconds, size, shape).to(device)
    diagnostic = Products(busy, size).to(device)
    own_step = seconds_of(prognostic.step, device, 5)
    own_call = seconds_of(lambda: diagnostic.forward(prognostic.x), device, 5)
    with DistributedInference(Products, busy, size, call - busy) as infer:

        def rollout(steps: int) -> float:
            began = time.perf_counter()
            futures = [infer.submit(prognostic.step()) for _ in range(steps)]
            for future in futures:
                future.result(WAIT_SECONDS)
            return time.perf_counter() - began

        workers = len(infer.remote_ranks)
        rollout(4 * workers)
        wall = statistics.median(rollout(nsteps) for _ in range(3))
    whole = own_call + call - busy
    ideal = max(nsteps * (own_step + own_call), nsteps * whole / workers) + call - busy
    return {
        "step alone ms": own_step * 1e3,
        "call alone ms": own_call * 1e3,
        "wall s": wall,
        "ideal s": ideal,
        "ideal over wall": ideal / wall,
        "one process s": nsteps * (own_step + whole),
    }


class Loaded:
    """An Earth2Studio diagnostic from a package, at the coords that it asks for."""

    def __init__(self, name: str, package: str) -> None:
        self.model = load(name, package)

    def to(self, device: torch.device) -> Loaded:
        self.model = self.model.to(device).eval()
        return self

    def input_coords(self) -> Any:
        return self.model.input_coords()

    def forward(self, x: torch.Tensor, coords: Any) -> torch.Tensor:
        return self.model(x, coords)[0]


def load(name: str, package: str) -> Any:
    """Load a diagnostic of Earth2Studio from its package."""
    import earth2studio.models.dx as models
    from earth2studio.models.auto import Package

    return getattr(models, name).load_model(Package(package))


def real(fcn: str, diagnostic: str, package: str, nsteps: int) -> Row:
    """Steps per second of FourCastNet and a diagnostic behind it, both from packages."""
    from earth2studio.models.auto import Package
    from earth2studio.models.px import FCN

    device = current_session().device
    prognostic = FCN.load_model(Package(fcn)).to(device)
    coords = of_a_step(prognostic.input_coords())
    x = torch.randn([len(v) for v in coords.values()], device=device)
    with DistributedInference(Loaded, diagnostic, package) as infer:
        states = prognostic.create_iterator(x, coords)
        infer.submit(*next(states)).result(WAIT_SECONDS)
        return rate(lambda: infer.submit(*next(states)), nsteps)


def corrdiff(package: str, nsteps: int) -> Row:
    """Calls per second of a generative model, on states of its own grid that are there at once."""
    device = current_session().device
    with DistributedInference(Loaded, "CorrDiff", package) as infer:
        coords = of_a_step(infer.call_func("input_coords", rank=infer.remote_ranks[0]))
        x = torch.randn([len(v) for v in coords.values()], device=device)
        infer.submit(x, coords).result(WAIT_SECONDS)
        return rate(lambda: infer.submit(x, coords), nsteps)


def accuracy(model: str, package: str, how: Mapping[str, Any]) -> Row:
    """Differences of a diagnostic's result from that of float32 on the CPU, and its speed."""
    device = current_session().device

    def made(device: torch.device, **how: Any) -> Chain:
        return Chain([Link("d", partial(load, model, package), **how)]).to(device)

    plain = made(torch.device("cpu"))
    coords = of_a_step(plain.input_coords())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn([len(v) for v in coords.values()], generator=generator)
    on_device = x.to(device)
    with torch.inference_mode():
        expected = result_of(plain, x, coords)
        chain = made(device, **how)
        found = result_of(chain, on_device, coords).cpu()
        seconds = seconds_of(lambda: result_of(chain, on_device, coords), device, 5)
    error = found.double() - expected.double()
    return {
        "rms": float(error.norm() / expected.double().norm()),
        "largest": float(error.abs().max() / expected.double().std()),
        "ms": seconds * 1e3,
    }


def result_of(chain: Chain, x: torch.Tensor, coords: Any) -> torch.Tensor:
    found: torch.Tensor = chain.forward(x, coords)["d"][0]
    return found


def of_a_step(coords: Any) -> Any:
    """Coordinates of one state, from those that a model asks for."""
    step = {"time": TIME, "lead_time": LEAD}
    rest = {key: values for key, values in coords.items() if key not in ("batch", *step)}
    return OrderedDict(**step, **rest)


def rate(submit: Callable[[], Future[Any]], nsteps: int) -> Row:
    """Submit so many steps and wait for all results."""
    began = time.perf_counter()
    for future in [submit() for _ in range(nsteps)]:
        future.result(WAIT_SECONDS)
    wall = time.perf_counter() - began
    return {"steps/s": nsteps / wall, "s a step": wall / nsteps}


MEASURES: dict[str, Callable[..., Row]] = {
    "transfer": transfer,
    "step": step,
    "emulated": emulated,
    "accuracy": accuracy,
    "real": real,
    "corrdiff": corrdiff,
}
