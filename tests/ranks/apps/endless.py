"""Workers that compute for ever, so that their driver can be killed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from common import report, state, wait_for

from distinf import DistributedInference, session


class Endless:
    def forward(self, x, coords, begun):
        begun.touch()
        while True:
            time.sleep(1.0)


if __name__ == "__main__":
    with session(nproc=int(sys.argv[1]) if len(sys.argv) > 1 else None) as rank:
        if rank == 0:
            infer = DistributedInference(Endless)
            begun = [Path.cwd() / f"begun{i}" for i in range(len(infer.remote_ranks))]
            futures = [infer.submit(*state(), path) for path in begun]
            for path in begun:
                wait_for(path)
            report("driver", os.getpid())
            futures[0].result()
