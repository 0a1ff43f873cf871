"""The workload by distinf, through its public names, as its recipe does it."""

import time
from typing import Any

import zarr

from benchmarks import workload
from distinf import DistributedInference, Runtime, session
from distinf.session.session import current_session
from distinf.store import ForecastStore, StoreLayout


def main(**settings: Any) -> None:
    variables, path = workload.arguments()
    with session(Runtime(**settings), nproc=workload.WORKERS + 1) as rank:
        if rank != 0:
            return
        farm = current_session().farm
        prognostic = workload.Prognostic(variables)
        with DistributedInference(workload.Diagnostic, variables) as infer:
            grid = infer.output_coords(workload.coords_of(variables))
            warm = [
                infer.submit(prognostic.state(0), workload.coords_of(variables))
                for _ in range(workload.WORKERS)
            ]
            for future in warm:
                future.result()
            del warm, future
            with ForecastStore(
                path,
                StoreLayout(workload.TIME, workload.LEADS, {"diagnostic": grid}),
                events=farm.events,
                pending=2 * (len(farm.workers) + workload.WRITERS),
            ) as store:
                start = time.time()
                for step, x in prognostic:
                    future = infer.submit(x, workload.coords_of(variables, step))
                    store.write("diagnostic", future)
                store.close()
                del future
            end = max(event.end for event in farm.events if event.kind == "write")
        carrier = farm.transport.carrier
    workload.check(zarr.open_array(f"{path}/result", mode="r")[0])
    workload.report(end - start, carrier=carrier)


if __name__ == "__main__":
    main()
