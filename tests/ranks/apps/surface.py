"""Every call of DistributedInference; started alone, with ranks of its own, or by a launcher."""

from __future__ import annotations

import itertools
import os
import sys
from concurrent.futures import as_completed, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import torch
from common import VARIABLES, outcome_of, report, state, wait_for

from distinf import DistributedInference, DistributedManager, local_concurrent_pipeline, session
from distinf.session.session import current_session
from testing.processes import listening, marked


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def forward(self, x, coords=None, plus=0.0):
        return x * self.factor + plus, coords, self.rank()

    def rank(self):
        return DistributedManager().rank

    def pid(self):
        return os.getpid()

    def add(self, a, b=0):
        return self.factor + a + b

    def manager(self):
        m = DistributedManager()
        return [m.rank, m.world_size, m.local_rank, m.distributed, m.device.type]


class Picky:
    """Needs two variables, in another order, and the north."""

    def input_coords(self):
        _, coords = state()
        return {"variable": VARIABLES[[2, 0]], "lat": coords["lat"][:5], "lon": coords["lon"]}

    def output_coords(self, coords):
        return coords

    def forward(self, x, coords):
        shape = [len(values) for values in coords.values()]
        return list(x.shape), shape, coords["variable"].tolist(), x[0, 0, :, 0, 0].tolist()


class Meet:
    """Ends when somebody else has come, too."""

    def forward(self, folder, mine, other):
        (folder / mine).touch()
        wait_for(folder / other)
        return mine


def calls(infer):
    futures = [infer.submit(torch.full((3,), float(i))) for i in range(7)]
    done, pending = wait(futures, timeout=60)
    report("wait", [len(done), len(pending)])
    report("as_completed", sorted(f.result()[0].sum().item() for f in as_completed(futures)))
    report("in order", [f.result()[0].sum().item() for f in futures])
    y, coords, _ = infer.submit(*state(2), plus=10.0).result()
    report("state", [y[0, 0, :, 0, 0].tolist(), list(coords), str(coords["lead_time"][0])])
    report("result", [y.device.type, y.dtype == torch.float32, y.is_contiguous(), y.requires_grad])

    x = torch.empty(1_000_000)
    note = SimpleNamespace()
    futures = []
    for i in range(5):
        note.step = i
        futures.append(infer.submit(x.fill_(i), note))
        x.fill_(-1.0)
        note.step = -1
    results = [f.result() for f in futures]
    report("overwritten", [[y.unique().tolist(), kept.step] for y, kept, _ in results])


def maps(infer):
    xs = [torch.tensor(float(i)) for i in range(9)]
    report("map", [y.item() for y, _, _ in infer.map(xs)])
    report("map of two", [(y.item(), c) for y, c, _ in infer.map(xs, "abc")])
    report("starmap", [y.item() for y, _, _ in infer.starmap(zip(xs))])
    unordered = infer.starmap(zip(xs), unordered=True)
    report("unordered", sorted(y.item() for y, _, _ in unordered))
    for buffersize in (1, 3, None):
        report(f"ahead {buffersize}", ahead(infer, buffersize))
    report("no buffer", outcome_of(infer.map, xs, buffersize=0)["kind"])
    report("endless", [next(infer.starmap(zip(itertools.cycle(xs))))[0].item() for _ in range(3)])


def ahead(infer, buffersize):
    """How far ahead of the results the arguments were taken."""
    taken = received = most = 0

    def items():
        nonlocal taken
        for i in range(20):
            taken += 1
            yield (torch.tensor(float(i)),)

    for _ in infer.starmap(items(), buffersize):
        received += 1
        most = max(most, taken - received)
    return [most, received]


def methods(infer, workers):
    report("ranks", infer.call_func("rank"))
    report("one rank", [infer.call_func("rank", rank=r) for r in infer.remote_ranks])
    report("arguments", infer.call_func("add", 1, b=2, rank=workers[-1]))
    report("managers", infer.call_func("manager", rank="all"))
    report("own manager", Scale.manager(None))
    report("no such rank", outcome_of(infer.call_func, "rank", rank=99))
    report("no such method", outcome_of(infer.call_func, "nothing", rank=workers[0]))


def selection():
    with DistributedInference(Picky) as picky:
        report("selected", picky.submit(*state()).result())
        x, coords = state()
        coords["variable"] = coords["variable"][:1]
        report("too little", outcome_of(picky.submit, x[:, :, :1], coords))
        report("output coords", picky.output_coords(state()[1])["variable"].tolist())


def sharing(workers):
    with (
        DistributedInference(Scale, 2.0) as double,
        DistributedInference(Scale, factor=-1.0, remote_ranks=workers[-1]) as minus,
    ):
        report("restricted", minus.remote_ranks)
        futures = [
            (infer.submit(torch.tensor(float(i))), sign)
            for i in range(8)
            for infer, sign in ((double, "double"), (minus, "minus"))
        ]
        results = [(sign, *f.result()) for f, sign in futures]
        report("shared", [(sign, y.item()) for sign, y, _, _ in results])
        report("shared ranks", sorted({(sign, rank) for sign, _, _, rank in results}))
    report("shut down", outcome_of(double.submit, torch.ones(1)))


def proposed(infer, prefix=""):
    for i in range(5):
        infer(torch.tensor(float(i)))
    infer.wait()  # nobody reads meanwhile
    report(f"{prefix}unread", sorted(y.item() for y, _, _ in infer.results()))

    def queue_all():
        for i in range(12):
            infer(torch.tensor(float(i)))
        infer.wait()

    def read_all():
        return sorted(y.item() for y, _, _ in infer.results())

    report(f"{prefix}pipeline", local_concurrent_pipeline([queue_all, read_all]))


def side_by_side(folder):
    events = current_session().farm.events
    with DistributedInference(Meet) as meet:
        futures = [meet.submit(folder, "a", "b"), meet.submit(folder, "b", "a")]
        report("met", [f.result() for f in futures])
        future = meet.submit(folder, "begun", "go")
        with events.timed("forecast", "next step", 0):
            wait_for(folder / "begun")
            (folder / "go").touch()
        future.result()
        slow = [meet.submit(folder, "slow", "fast is read"), meet.submit(folder, "fast", "fast")]
        fast = next(as_completed(slow))
        (folder / "fast is read").touch()
        report("first", [fast.result(), slow[0].result()])
        items = [(folder, "slow again", "fast is out"), (folder, "fast", "fast")]
        out = meet.starmap(items, unordered=True)
        first = next(out)
        (folder / "fast is out").touch()
        report("unordered first", [first, *out])


def broken_pipeline(infer):
    reading = Event()

    def read():
        results = infer.results()
        reading.set()
        return list(results)

    def fail():
        reading.wait(60)
        raise KeyError("level")

    report("pipeline error", outcome_of(local_concurrent_pipeline, [read, fail]))


def drive(folder):
    farm = current_session().farm
    workers = list(farm.workers)
    report("workers", workers)
    infer = DistributedInference(Scale, 2.0)
    report("pids", [os.getpid(), *infer.call_func("pid")])
    report("listening", {pid: listening(pid) for pid in marked(os.environ["DISTINF_TEST_RUN"])})
    calls(infer)
    maps(infer)
    methods(infer, workers)
    selection()
    sharing(workers)
    proposed(infer)
    if len(workers) > 1:
        side_by_side(folder)
    report("second session", outcome_of(session().__enter__))
    report("events", [[e.kind, e.rank, e.start, e.end] for e in farm.events])
    broken_pipeline(infer)
    report("after it", outcome_of(infer.submit, torch.ones(1)))


def main(nproc):
    if os.environ.get("RANK", "0") == "0":
        report("no session", outcome_of(DistributedInference, Scale, 1.0))
    with session(nproc=nproc) as rank:
        if rank == 0:
            drive(Path.cwd())
    with session(nproc=nproc) if nproc else proposed_session():
        if DistributedManager().rank == 0:
            proposed(DistributedInference(Scale, 3.0), "again ")


@contextmanager
def proposed_session():
    DistributedInference.initialize()
    yield
    DistributedInference.finalize()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
