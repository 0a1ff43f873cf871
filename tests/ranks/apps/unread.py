"""An application that reads one of several results, and handles the error of another one."""

from __future__ import annotations

import time

from distinf import DistributedInference, TaskError, session


class Slow:
    def forward(self, seconds):
        if seconds < 0:
            raise ValueError("no time")
        time.sleep(seconds)
        return seconds


if __name__ == "__main__":
    with session(nproc=3) as rank:
        if rank == 0:
            with DistributedInference(Slow) as infer:
                # Longer than a session takes to end its processes.
                infer.submit(7)
                try:
                    infer.submit(-1).result()
                except TaskError:
                    print("handled")
    print("after the session")
