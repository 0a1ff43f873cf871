"""Calls a second with 4 KiB tensors and a model that does nothing, beside bare ``rpc_async``.

::

    uv run python -m benchmarks.calls
"""

import itertools

import torch
from torch.distributed import rpc

from benchmarks import job, measuring
from distinf import DistributedInference, session
from distinf.session.session import current_session

COUNT = 2000


class Nothing:
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def nothing(x: torch.Tensor) -> torch.Tensor:
    return x


def main() -> None:
    given = measuring.parse(__doc__, workers=1)
    with session(nproc=given.workers + 1) as rank:
        if rank == 0:
            measure(given)


def measure(given) -> None:
    x = torch.rand(1024)
    limit = job.IN_FLIGHT * given.workers
    # In the session's own group, so with the same transport options.
    names = itertools.cycle([f"rank{rank}" for rank in range(1, given.workers + 1)])
    figures: dict[str, list[float]] = {"rpc_async": [], "distinf": []}
    with DistributedInference(Nothing) as infer:

        def ours(done):
            infer.submit(x).add_done_callback(done)

        def bare(done):
            rpc.rpc_async(next(names), nothing, args=(x,)).add_done_callback(done)

        for repeat in range(given.repeats + 1):
            for name, send in (("rpc_async", bare), ("distinf", ours)):
                spent = measuring.in_flight(COUNT, limit, send)
                if repeat > 0:  # the first warms up
                    figures[name].append(COUNT / spent)
    carrier = current_session().farm.transport.carrier
    measuring.tell(f"calls, {given.workers} worker(s), {carrier}", figures, "1/s", given.json)
    measuring.ratio("distinf over rpc_async", figures["distinf"], figures["rpc_async"], ">= 0.8")


if __name__ == "__main__":
    main()
