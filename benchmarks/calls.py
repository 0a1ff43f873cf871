"""Calls a second with 4 KiB tensors and a model that does nothing, beside bare ``rpc_async``.

::

    uv run python -m benchmarks.calls
"""

import itertools

import torch
from torch.distributed import rpc

from benchmarks import workload
from benchmarks.common import Repeats, in_flight, parser
from distinf import DistributedInference, session
from distinf.session.session import current_session

COUNT = 2000


class Nothing:
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def nothing(x: torch.Tensor) -> torch.Tensor:
    return x


def main() -> None:
    given = parser(__doc__, workers=1, repeats=5).parse_args()
    with session(nproc=given.workers + 1) as rank:
        if rank == 0:
            measure(given)


def measure(given) -> None:
    x = torch.rand(1024)
    limit = workload.IN_FLIGHT * given.workers
    # In the session's own group, so with the same transport options.
    names = itertools.cycle([f"rank{rank}" for rank in range(1, given.workers + 1)])
    carrier = current_session().farm.transport.carrier
    repeats = Repeats(f"calls, {given.workers} worker(s), {carrier}", "calls/s")
    with DistributedInference(Nothing) as infer:

        def ours(done):
            infer.submit(x).add_done_callback(done)

        def bare(done):
            rpc.rpc_async(next(names), nothing, args=(x,)).add_done_callback(done)

        for repeat in range(given.repeats + 1):
            repeats.add(repeat, rpc_async=COUNT / in_flight(COUNT, limit, bare))
            repeats.add(repeat, distinf=COUNT / in_flight(COUNT, limit, ours))
    repeats.compare("distinf", "rpc_async", "at least 0.8")
    repeats.show(given.json)


if __name__ == "__main__":
    main()
