"""The job by distinf, through its public names, as its recipe does it."""

import time

import zarr

from benchmarks import job
from distinf import DistributedInference, session
from distinf.session.session import current_session
from distinf.store import ForecastStore, StoreLayout


def main() -> None:
    variables, path = job.arguments()
    with session(nproc=job.WORKERS + 1) as rank:
        if rank != 0:
            return
        farm = current_session().farm
        prognostic = job.Prognostic(variables)
        with DistributedInference(job.Diagnostic, variables) as infer:
            grid = infer.output_coords(job.coords_of(variables))
            warm = [
                infer.submit(prognostic.state(0), job.coords_of(variables))
                for _ in range(job.WORKERS)
            ]
            for future in warm:
                future.result()
            del warm, future
            with ForecastStore(
                path,
                StoreLayout(job.TIME, job.LEADS, {"diagnostic": grid}),
                events=farm.events,
                pending=2 * (len(farm.workers) + job.WRITERS),
            ) as store:
                start = time.time()
                for step, x in prognostic:
                    future = infer.submit(x, job.coords_of(variables, step))
                    store.write("diagnostic", future)
                store.close()
                del future
            end = max(event.end for event in farm.events if event.kind == "write")
        carrier = farm.transport.carrier
    job.check(zarr.open_array(f"{path}/result", mode="r")[0])
    job.report(end - start, carrier=carrier)


if __name__ == "__main__":
    main()
