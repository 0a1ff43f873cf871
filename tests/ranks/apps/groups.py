"""Models over two ranks: their results, their errors, and ranks that are lost."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections import OrderedDict

import numpy as np
import torch
import torch.distributed as dist
from common import outcome_of, report

from distinf import DistributedInference, DistributedManager, Grouped, GroupSizes, Runtime, session
from distinf.session.session import current_session


class Share:
    """The sum of its input, of which each rank adds up its own part."""

    def __init__(self, group, tell=""):
        if tell:
            raise FileNotFoundError(tell)
        self._group = group

    def forward(self, x, what=""):
        rank, size = dist.get_rank(self._group), dist.get_world_size(self._group)
        if what == "raise":
            raise ValueError("all ranks refuse this")
        if what.startswith("raise alone") and rank == 1:
            raise ArithmeticError("one rank refuses this")
        if what == "raise alone, unnoticed":  # as in a collective of NCCL
            time.sleep(3600)
        if what == "raise at first" and rank == 0:
            raise torch.OutOfMemoryError("the first rank refuses this")
        if what == "draw":
            drawn = torch.rand(1) + random.random()
            return torch.cat(self._all(drawn)).tolist()
        if what.startswith("die") and rank == 1 and not os.path.exists(what):
            open(what, "w").close()
            os.kill(os.getpid(), signal.SIGSTOP if "stopped" in what else signal.SIGKILL)
        y = x[rank::size].sum().reshape(1)
        return torch.cat(self._all(y)).tolist(), self._all_ranks()

    def _all(self, y):
        parts = [torch.empty_like(y) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, y, self._group)
        return parts

    def _all_ranks(self):
        own = torch.tensor([DistributedManager().rank])
        return [int(rank) for rank in self._all(own)]


class Steps:
    """A prognostic: each step adds the number of its ranks."""

    def __init__(self, group):
        self._group = group

    def input_coords(self):
        return OrderedDict(variable=np.array(["a"]))

    def create_iterator(self, x, coords):
        for _ in itertools.count():
            yield x.clone(), coords
            one = torch.ones(1)
            dist.all_reduce(one, group=self._group)
            x += one


def results():
    with DistributedInference(Grouped(Share)) as infer:
        report("workers", infer.remote_ranks)
        report("shares", [infer.submit(torch.arange(6.0)).result() for _ in range(4)])
        report("drawn", [infer.submit(torch.zeros(1), "draw").result() for _ in range(4)])
        manager = DistributedManager()
        report("group of rank 0", manager.group_size("model_parallel"))
    steps = Grouped(Steps)()
    report("variables", steps.input_coords()["variable"].tolist())
    report("hook", outcome_of(setattr, steps, "front_hook", print))
    for name in ("steps", "steps again"):
        states = steps.create_iterator(torch.zeros(2), {})
        report(name, [next(states)[0].tolist() for _ in range(4)])


def errors():
    report("constructor", outcome_of(DistributedInference, Grouped(TellTale)))
    infer = DistributedInference(Grouped(Share))
    for what in ("raise", "raise alone"):
        failing, *others = [
            infer.submit(torch.arange(6.0), word) for word in (what, "", "", "", "")
        ]
        report(what, outcome_of(failing.result))
        report(f"workers after {what}", len(infer.remote_ranks))
        others += [infer.submit(torch.arange(6.0)) for _ in range(2)]
        report(f"after {what}", [future.result(timeout=60)[0] for future in others])
    report("raise at first", outcome_of(infer.submit(torch.arange(6.0), "raise at first").result))


class TellTale(Share):
    def __init__(self, group):
        super().__init__(group, "no weights")


def unnoticed():
    infer = DistributedInference(Grouped(Share))
    what = "raise alone, unnoticed"
    failing, *others = [infer.submit(torch.arange(6.0), word) for word in (what, "", "", "")]
    report("error", outcome_of(failing.result))
    report("others", [future.result(timeout=60)[0] for future in others])


def losses(how):
    infer = DistributedInference(Grouped(Share))
    futures = [infer.submit(torch.arange(6.0), f"die {how}") for _ in range(6)]
    report("shares", [future.result()[0] for future in futures])
    report("workers", len(infer.remote_ranks))


def lost_beside_the_driver(how):
    steps = Grouped(Steps)()
    states = steps.create_iterator(torch.zeros(2), {})
    report("steps", [next(states)[0].tolist() for _ in range(2)])
    peer = current_session()._ranks[1].pid
    os.kill(peer, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
    began = time.monotonic()
    report("error", outcome_of(lambda: [next(states) for _ in range(100)]))
    report("seconds", time.monotonic() - began)
    report("session", outcome_of(current_session().farm.check))


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    attempts = 1 if what in ("errors", "unnoticed") else 3  # no other task is lost by an error
    runtime = Runtime(on_error="skip", liveness_timeout=4.0, max_attempts=attempts)
    with session(runtime, nproc=6, groups=GroupSizes(2, 2)) as rank:
        if rank == 0:
            globals()[what](*arguments)
