"""A model over two ranks on Ray, one of which cannot construct its part."""

import sys

import torch
import torch.distributed as dist

from distinf import DistributedInference, Grouped, GroupSizes, Runtime, session


class Alone:
    def __init__(self, group):
        if dist.get_rank(group) == 1:
            raise FileNotFoundError("no weights here")
        dist.barrier(group)

    def forward(self, x):
        return x


if __name__ == "__main__":
    runtime = Runtime(engine="ray", address=sys.argv[1], workers=1)
    with session(runtime, groups=GroupSizes(diagnostic=2)) as rank:
        if rank == 0:
            DistributedInference(Grouped(Alone)).submit(torch.ones(1))
