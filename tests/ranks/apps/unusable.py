"""Rank 1's GPU fails every further call after its first one; a fake lane stands for it."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path

from common import report

from distinf import DistributedInference, DistributedManager, Runtime, session
from distinf.session.session import current_session
from distinf.transport import rpc


class BrokenLane:
    """As `distinf.gpu.Lane` of a GPU that an assertion has left unusable."""

    def entered(self, ready):
        return nullcontext()

    def recover(self, error):
        return False


class Asserting:
    def forward(self, number):
        if DistributedManager().rank == 1:
            rpc._group.memory._worker._lane = BrokenLane()
            raise RuntimeError("CUDA error: device-side assert triggered")
        return number

    def pid(self):
        return os.getpid()


def has_ended(pid):
    """Whether a process ends within 30 s; its parent may not have asked for its status yet."""
    stat, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def main():
    with session(Runtime(driver_works="never"), nproc=None if "RANK" in os.environ else 3) as rank:
        if rank == 0:
            with DistributedInference(Asserting) as infer:
                pid = infer.call_func("pid", rank=1)
                futures = [infer.submit(number) for number in range(6)]
                report("results", [future.result() for future in futures])
                report("left", list(current_session().farm.workers))
                report("ended", has_ended(pid))


if __name__ == "__main__":
    main()
