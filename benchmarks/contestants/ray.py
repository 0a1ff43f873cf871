"""The workload by Ray actors and Ray's object store.

As its documentation advises: one actor for each worker, large arguments by ``ray.put`` and read
without a copy, and a bound on the calls in flight.
"""

import threading
import time

import numpy as np
import ray

from benchmarks import workload


@ray.remote
class Worker:
    def __init__(self) -> None:
        workload.one_thread()

    def diagnose(self, x: np.ndarray) -> np.ndarray:
        return workload.diagnose(x)


def main() -> None:
    variables, path = workload.arguments()
    workload.one_thread()
    ray.init(
        num_cpus=workload.WORKERS,
        include_dashboard=False,
        object_store_memory=4 * 2**30,
        log_to_driver=False,
        logging_level="error",
    )
    prognostic = workload.Prognostic(variables)
    index = workload.taken(variables)
    workers = [Worker.remote() for _ in range(workload.WORKERS)]
    own = np.empty((1, 1, workload.TAKEN, *workload.GRID), dtype="float32")
    results = workload.Results(path)

    def submit(x: np.ndarray, worker: int) -> ray.ObjectRef:
        np.take(x, index, axis=2, out=own, mode="clip")  # any other mode takes a buffer
        return workers[worker].diagnose.remote(ray.put(own))

    ray.get([submit(prognostic.state(0).numpy(), i) for i in range(workload.WORKERS)])
    on: dict[ray.ObjectRef, int] = {}
    start = time.time()
    for step, x in prognostic:
        while len(on) == workload.WORKERS * workload.IN_FLIGHT:
            done, _ = ray.wait(list(on), fetch_local=False)
            for ref in done:
                del on[ref]
        for ref in ray.wait(list(on), num_returns=len(on), timeout=0)[0] if on else ():
            del on[ref]
        load = list(on.values())
        worker = min(range(workload.WORKERS), key=load.count)
        ref = submit(x.numpy(), worker)
        on[ref] = worker
        results.write(step, lambda ref=ref: ray.get(ref))
    results.close()
    seconds = time.time() - start
    workload.check_and_report(seconds, path)
    threading.Timer(20, lambda: __import__("os")._exit(0)).start()
    ray.shutdown()
    __import__("os")._exit(0)


if __name__ == "__main__":
    main()
