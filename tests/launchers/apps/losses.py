"""A rank is killed in the midst of the run: ``worker`` or ``driver``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from distinf import DistributedInference, Runtime, session


class Fatal:
    """Kills the first worker that computes; the others compute on."""

    def forward(self, x, folder):
        """Double, unless this is the first call of all."""
        try:
            (Path(folder) / "killed").touch(exist_ok=False)
        except FileExistsError:
            return 2 * x
        os.kill(os.getpid(), signal.SIGKILL)
        return x


class Endless:
    """Computes for ever."""

    def forward(self, x):
        """Sleep."""
        while True:
            time.sleep(1.0)


def main() -> None:
    """Kill whom the command line names."""
    with session(Runtime(start_timeout=100.0)) as rank:
        if rank == 0 and sys.argv[1] == "worker":
            with DistributedInference(Fatal) as infer:
                futures = [infer.submit(torch.tensor(float(i)), str(Path.cwd())) for i in range(6)]
                print("results", *(int(future.result()) for future in futures), flush=True)
        elif rank == 0:
            infer = DistributedInference(Endless)
            infer.submit(torch.zeros(1))
            time.sleep(1.0)
            print("driver dies", time.time(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
