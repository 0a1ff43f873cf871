"""The job by mpi4py.futures under mpirun.

As its documentation advises: a pool over the ranks that mpirun started, and pickles with
out-of-band buffers, so that arrays are not copied into the pickle.
"""

import sys
import threading
import time

import numpy as np
from mpi4py import MPI
from mpi4py.futures import MPICommExecutor

from benchmarks import job


def diagnose(x: np.ndarray) -> np.ndarray:
    return job.diagnose(x)


def main() -> None:
    variables, path = job.arguments()
    job.one_thread()
    with MPICommExecutor(MPI.COMM_WORLD, root=0, use_pkl5=True) as pool:
        if pool is None:
            return
        prognostic = job.Prognostic(variables)
        index = job.taken(variables)
        limit = job.WORKERS * job.IN_FLIGHT
        shape = (1, 1, job.TAKEN, *job.GRID)
        own = [np.zeros(shape, dtype="float32") for _ in range(limit + 1)]
        for warm in [pool.submit(diagnose, own[i]) for i in range(job.WORKERS)]:
            warm.result()
        results = job.Results(path)
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
    job.tell(seconds, path)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
