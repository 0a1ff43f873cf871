"""Cases of farming out on GPUs; runs on a CPU, too, where carriers do not differ.

gpu.py CASE NPROC CARRIER RESULTS; NPROC 0: a launcher started the ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections import OrderedDict

if os.environ.get("MASKED"):  # each rank sees only its own, as under srun --gpus-per-task=1
    GPUS = os.environ["MASKED"].split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = GPUS[int(os.environ["LOCAL_RANK"]) % len(GPUS)]

import numpy as np
import torch
import torch.distributed as dist

from distinf import DistributedInference, Grouped, GroupSizes, Runtime, session
from distinf.session.session import current_session

STEPS = 24
SHAPE = (26, 361, 720)


class Network(torch.nn.Module):
    """Some convolutions with seeded weights; says where it ran."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first = torch.nn.Conv2d(SHAPE[0], 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x[None])))[0]


class Mean:
    """Tells which state it was given, and whether it was one alone."""

    def forward(self, x):
        return x.mean(dtype=torch.float64), x.max() - x.min()


class Picking:
    """Needs two variables that do not stand together."""

    def input_coords(self):
        return {"variable": np.array([20, 3])}

    def forward(self, x, coords):
        return x.mean(dtype=torch.float64) + x.shape[0]


class Hungry:
    """Wants more memory than any GPU has when it is asked to."""

    def forward(self, x, much):
        if much:
            torch.empty(1 << 45, device=x.device, dtype=torch.float32)
        return x.sum()


class Asserting:
    """Fails an assertion of the device on rank 1."""

    def forward(self, x):
        if os.environ["RANK"] == "1":
            index = torch.full((1,), 1_000_000, device=x.device)
            return x[index].sum()
        return x.sum()


class Halves:
    """Adds up its input, each of two ranks a part of it; tells what each of them has drawn."""

    def __init__(self, group):
        self.group = group

    def forward(self, x, dies=False):
        rank = dist.get_rank(self.group)
        if dies and rank == 1 and not os.path.exists("died"):
            open("died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        own = torch.stack([x[rank::2].sum(), torch.rand((), device=x.device)])
        parts = [torch.empty_like(own) for _ in range(2)]
        dist.all_gather(parts, own, group=self.group)
        sums, drawn = torch.stack(parts).T
        return sums.sum(), drawn.tolist(), str(x.device.type), dist.get_backend(self.group)


class Steps:
    """A prognostic on two ranks: each step adds the number of them."""

    def __init__(self, group):
        self.group = group

    def create_iterator(self, x, coords):
        while True:
            yield x.clone(), coords
            one = torch.ones(1, device=x.device)
            dist.all_reduce(one, group=self.group)
            x = x + one


def states(device, steps=STEPS):
    """A prognostic that writes each state over the one before."""
    generator = torch.Generator(device).manual_seed(7)
    x = torch.empty(SHAPE, device=device)
    for _ in range(steps):
        yield x.normal_(generator=generator)
        x.fill_(float("nan"))


def digest(tensors):
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()


def bytes_of_all(device):
    with DistributedInference(Network) as infer:
        futures = [infer.submit(x) for x in states(device)]
        return {"digest": digest(future.result() for future in futures)}


def stress(device):
    x = torch.empty(SHAPE, device=device)
    futures = []
    with DistributedInference(Mean) as infer:
        for step in range(2000):
            futures.append(infer.submit(x.fill_(step)))
            x.fill_(-1.0)
        found = [future.result() for future in futures]
    wrong = [i for i, (mean, spread) in enumerate(found) if mean != i or spread != 0]
    return {"wrong": wrong, "results": len(found)}


def on_device(device):
    """Compute on with results, while others arrive, on the stream that the driver uses."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    with DistributedInference(Mean) as infer:
        futures = [infer.submit(torch.full(SHAPE, float(i), device=device)) for i in range(40)]
        kept = [future.result()[0] for future in futures]
        for mean in kept:
            total += mean
    return {"devices": sorted({str(mean.device) for mean in kept}), "total": float(total)}


def memory(device):
    x = torch.ones(1000, device=device)
    with DistributedInference(Hungry) as infer:
        futures = [infer.submit(x, much) for much in (False, True, False, True, False)]
        told = [str(future.exception() or "") for future in futures]
    return {"errors": told, "left": list(current_session().farm.workers)}


def assertion(device):
    x = torch.ones(1000, device=device)
    with DistributedInference(Asserting) as infer:
        futures = [infer.submit(x) for _ in range(6)]
        sums = [float(future.result()) for future in futures]
    return {"sums": sums, "left": list(current_session().farm.workers)}


def together(device):
    """Step a prognostic on two ranks, and farm its states out to replicas of two ranks."""
    steps = Grouped(Steps)().create_iterator(torch.zeros(1000, device=device), {})
    with DistributedInference(Grouped(Halves)) as infer:
        futures = [infer.submit(next(steps)[0]) for _ in range(8)]
        sums, drawn, devices, backends = zip(*[future.result() for future in futures], strict=True)
    return {
        "sums": [float(total) for total in sums],
        "drawn": drawn,
        "devices": sorted({*devices}),
        "backends": sorted({*backends}),
    }


def rank_lost(device):
    with DistributedInference(Grouped(Halves)) as infer:
        futures = [
            infer.submit(torch.full((1000,), float(i), device=device), True) for i in range(8)
        ]
        sums = [float(future.result()[0]) for future in futures]
        return {"sums": sums, "left": len(infer.remote_ranks)}


def asynchronous(device):
    """Submit while torch refuses whatever would let the host wait for the GPU."""
    coords = OrderedDict(variable=np.arange(SHAPE[0]), lat=np.arange(361), lon=np.arange(720))
    x = torch.empty(SHAPE, device=device)
    with DistributedInference(Picking) as infer:
        infer.submit(x.fill_(-1.0), coords).result()  # places the plan's index
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        futures = [infer.submit(x.fill_(step), coords) for step in range(20)]
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        return {"sums": [float(future.result()) for future in futures]}


CASES = {
    "asynchronous": asynchronous,
    "bytes": bytes_of_all,
    "stress": stress,
    "device": on_device,
    "memory": memory,
    "assertion": assertion,
    "together": together,
    "rank lost": rank_lost,
}
# Ranks of the prognostic, and of each replica of a diagnostic.
GROUPS = {"together": GroupSizes(2, 2), "rank lost": GroupSizes(1, 2)}


def main():
    case, nproc, carrier, results = sys.argv[1:]
    runtime = Runtime(
        carrier=carrier,
        results=results,
        on_error="skip" if case == "memory" else "fail",
        driver_works="never",
    )
    with session(runtime, nproc=int(nproc) or None, groups=GROUPS.get(case)) as rank:
        if rank == 0:
            here = current_session()
            told = CASES[case](here.device)
            transport = here.farm.transport
            told.update(carrier=transport.carrier, reason=transport.reason, device=str(here.device))
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
