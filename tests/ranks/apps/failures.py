"""What goes wrong with models and workers, one after the other; ranks of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
from common import outcome_of, report, state, wait_for

from distinf import DistributedInference, DistributedManager, Runtime, session
from distinf.session.session import current_session


class Broken:
    def __init__(self, path):
        raise FileNotFoundError(f"no weights at {path}")


class Picky:
    """Does not like one of its inputs."""

    def forward(self, x, coords):
        if isinstance(x, str):
            return lambda: 0
        if coords["lead_time"][0] == np.timedelta64(12, "h"):
            self.look_closer(x)
        return x, coords

    def look_closer(self, x):
        raise ArithmeticError(r"negative humidity \x80")


class Deadly:
    """Kills its process in one step, once or every time."""

    def forward(self, x, coords, folder, always=False):
        step = int(coords["lead_time"][0] / np.timedelta64(6, "h"))
        if step == 3:
            wait_for(folder / "queue is full")
            marker = folder / "killed once"
            if always or not marker.exists():
                marker.touch()
                x.zero_()  # the next worker must not see this
                os.kill(os.getpid(), signal.SIGKILL)
        return x.sum().item(), coords, DistributedManager().rank


def models(folder):
    report("constructor", outcome_of(DistributedInference, Broken, "weights.pt"))
    report("no such ranks", outcome_of(DistributedInference, Picky, remote_ranks=[1, 7]))
    report("not importable", outcome_of(DistributedInference, lambda: Picky()))
    infer = DistributedInference(Picky)
    other = DistributedInference(Picky)
    report("still usable", len(infer.submit(*state(1)).result()))
    for name, item in (("cannot go", lambda: 0), ("cannot come back", "unpicklable")):
        for _ in range(2 * len(current_session().farm.workers)):  # as many as there are slots
            told = outcome_of(lambda item=item: infer.submit(item, {}).result(timeout=60))
        report(name, told)
    report("usable after that", len(infer.submit(*state(1)).result(timeout=60)))
    failing = infer.submit(*state(2))
    report("task error", outcome_of(failing.result))
    report("later", outcome_of(infer.submit, *state(3)))
    report("elsewhere", outcome_of(other.submit, *state(3)))
    report("queued", outcome_of(infer, *state(3)))


def losses(folder):
    infer = DistributedInference(Deadly)
    report("carrier", current_session().farm.transport.carrier)
    x, coords = state(0)
    x = x.repeat(1, 1, 1, 8, 1)  # too large for a message
    futures = []
    for step in range(12):
        x.fill_(step)
        coords["lead_time"][0] = np.timedelta64(6 * step, "h")
        if step == 5:
            (folder / "queue is full").touch()
        futures.append(infer.submit(x, coords, folder))
    x.fill_(-1)
    coords["lead_time"][0] = np.timedelta64(99, "h")
    results = [f.result(timeout=100) for f in futures]
    report("sums", [value / x.numel() for value, _, _ in results])
    report("steps", [int(c["lead_time"][0] / np.timedelta64(6, "h")) for _, c, _ in results])
    report("ranks", sorted({rank for _, _, rank in results[6:]}))
    report("left", list(infer.remote_ranks))
    report("lost rank", outcome_of(infer.call_func, "forward", rank=3 - infer.remote_ranks[0]))
    last = infer.submit(*state(3), folder, always=True)
    waiting = infer.submit(*state(4), folder)
    report("last worker", outcome_of(last.result, timeout=60))
    report("waiting", outcome_of(waiting.result, timeout=60))
    report("nobody", outcome_of(infer.submit, *state(5), folder))
    report("no new model", outcome_of(DistributedInference, Picky))


if __name__ == "__main__":
    for part in (models, losses):
        with session(Runtime(driver_works="never"), nproc=3):
            part(Path.cwd())
        report(f"{part.__name__} ended", True)
