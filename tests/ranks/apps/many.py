"""32 workers whose processes, like the driver's, may open 1024 files: what many systems allow."""

from __future__ import annotations

import json
import os
import resource

import torch

from distinf import DistributedInference, Runtime, session

WORKERS, TASKS = 32, 128


class Twice:
    def forward(self, x):
        return 2 * x, os.getpid()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    with session(Runtime(start_timeout=400), nproc=WORKERS + 1) as rank:
        if rank == 0:
            states = [torch.full((2**18,), float(i)) for i in range(TASKS)]  # 1 MiB: in slots
            with DistributedInference(Twice) as infer:
                results = list(infer.map(states))
                print(json.dumps(["workers", len(infer.remote_ranks)]))
            right = all(bool((y == 2 * i).all()) for i, (y, _) in enumerate(results))
            print(json.dumps(["right", right]))
            print(json.dumps(["at work", len({pid for _, pid in results})]))
            print(json.dumps(["descriptors", len(os.listdir("/proc/self/fd"))]))
