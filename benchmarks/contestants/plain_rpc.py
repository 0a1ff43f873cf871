"""The workload by torch.distributed.rpc with its default options, as one would write it first.

The whole state is sent to a worker that is idle, selected there, and written on arrival.
"""

import os
import queue
import tempfile
import time

import numpy as np
import torch
import torch.multiprocessing as mp
from torch.distributed import rpc

from benchmarks import workload


def diagnose(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(workload.diagnose(x.index_select(2, index).numpy()))


def nothing() -> None:
    """Answer."""


def run(rank: int, variables: int, path: str, meeting: str) -> None:
    workload.one_thread()
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{meeting}")
    rpc.init_rpc(
        f"rank{rank}", rank=rank, world_size=workload.WORKERS + 1, rpc_backend_options=options
    )
    if rank == 0:
        workload.check_and_report(drive(variables, path), path)
    rpc.shutdown()


def drive(variables: int, path: str) -> float:
    prognostic = workload.Prognostic(variables)
    index = torch.from_numpy(workload.taken(variables))
    results = workload.Results(path)
    idle: queue.SimpleQueue[int] = queue.SimpleQueue()
    ranks = range(1, workload.WORKERS + 1)
    for warm in [
        rpc.rpc_async(f"rank{rank}", diagnose, args=(prognostic.state(0), index)) for rank in ranks
    ]:
        warm.wait()
    for rank in ranks:
        idle.put(rank)
    start = time.time()
    for step, x in prognostic:
        rank = idle.get()
        future = rpc.rpc_async(f"rank{rank}", diagnose, args=(x, index))

        def arrived(done: torch.futures.Future, step: int = step, rank: int = rank) -> None:
            idle.put(rank)
            value: np.ndarray = done.value().numpy()
            results.write(step, lambda: value)
            finished.put(step)

        future.add_done_callback(arrived)
    for _ in range(workload.STEPS + 1):
        finished.get()
    results.close()
    return time.time() - start


finished: queue.SimpleQueue[int] = queue.SimpleQueue()


def main() -> None:
    variables, path = workload.arguments()
    os.environ.setdefault("TP_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (variables, path, f"{folder}/meeting"), nprocs=workload.WORKERS + 1)


if __name__ == "__main__":
    main()
