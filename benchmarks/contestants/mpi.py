"""The workload by mpi4py.futures under mpirun.

As its documentation advises: a pool over the ranks that mpirun started, and pickles with
out-of-band buffers, so that arrays are not copied into the pickle.
"""

import sys
import threading
import time

import numpy as np
from mpi4py import MPI
from mpi4py.futures import MPICommExecutor

from benchmarks import workload


def diagnose(x: np.ndarray) -> np.ndarray:
    return workload.diagnose(x)


def main() -> None:
    variables, path = workload.arguments()
    workload.one_thread()
    with MPICommExecutor(MPI.COMM_WORLD, root=0, use_pkl5=True) as pool:
        if pool is None:
            return
        prognostic = workload.Prognostic(variables)
        index = workload.taken(variables)
        limit = workload.WORKERS * workload.IN_FLIGHT
        shape = (1, 1, workload.TAKEN, *workload.GRID)
        own = [np.zeros(shape, dtype="float32") for _ in range(limit + 1)]
        for warm in [pool.submit(diagnose, own[i]) for i in range(workload.WORKERS)]:
            warm.result()
        results = workload.Results(path)
        room = threading.BoundedSemaphore(limit)
        start = time.time()
        for step, x in prognostic:
            room.acquire()
            buffer = own[step % len(own)]  # its last task is done: tasks end in their order
            np.take(x.numpy(), index, axis=2, out=buffer, mode="clip")
            future = pool.submit(diagnose, buffer)
            future.add_done_callback(lambda _: room.release())
            results.write(step, future.result)
        results.close()
        seconds = time.time() - start
    workload.check_and_report(seconds, path)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
