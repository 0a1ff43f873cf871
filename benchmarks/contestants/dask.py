"""The workload by Dask distributed.

As its documentation advises: processes of one thread, large arguments by ``scatter(direct=True)``
to a worker that has room, results gathered directly.
"""

import time

import dask
import numpy as np
from distributed import Client, LocalCluster

from benchmarks import workload


def diagnose(x: np.ndarray) -> np.ndarray:
    return workload.diagnose(x)


def main() -> None:
    variables, path = workload.arguments()
    workload.one_thread()
    dask.config.set({"distributed.comm.compression": None})
    with (
        LocalCluster(
            n_workers=workload.WORKERS, threads_per_worker=1, dashboard_address=None, memory_limit=0
        ) as cluster,
        Client(cluster, direct_to_workers=True) as client,
    ):
        client.wait_for_workers(workload.WORKERS)
        workers = list(client.scheduler_info()["workers"])
        prognostic = workload.Prognostic(variables)
        index = workload.taken(variables)
        own = np.empty((1, 1, workload.TAKEN, *workload.GRID), dtype="float32")
        results = workload.Results(path)

        def submit(x: np.ndarray, worker: str):
            np.take(x, index, axis=2, out=own, mode="clip")
            data = client.scatter(own, workers=[worker], direct=True, hash=False)
            return client.submit(diagnose, data, workers=[worker], pure=False)

        client.gather([submit(prognostic.state(0).numpy(), worker) for worker in workers])
        on = {}
        start = time.time()
        for step, x in prognostic:
            while True:
                on = {future: worker for future, worker in on.items() if not future.done()}
                if len(on) < workload.WORKERS * workload.IN_FLIGHT:
                    break
                time.sleep(0.001)
            load = list(on.values())
            worker = min(workers, key=load.count)
            future = submit(x.numpy(), worker)
            on[future] = worker
            results.write(step, lambda future=future: client.gather(future, direct=True))
        results.close()
        seconds = time.time() - start
    workload.check_and_report(seconds, path)


if __name__ == "__main__":
    main()
