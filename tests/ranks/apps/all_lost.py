"""A task that kills every worker, and an application that does not expect it."""

from __future__ import annotations

import os
import signal

from common import state

from distinf import DistributedInference, Runtime, session


class Deadly:
    def forward(self, x, coords):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    never = Runtime(driver_works="never")  # it would die of the same task
    with session(never, nproc=3) as rank, DistributedInference(Deadly) as infer:
        for _ in infer.starmap(state(step) for step in range(10)):
            pass
