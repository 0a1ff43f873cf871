"""Whether the farm holds up the prognostic: its own step time, and the time of ``submit``.

::

    uv run python -m benchmarks.prognostic
"""

import time
from collections.abc import Callable

import torch

from benchmarks import job, measuring
from distinf import DistributedInference, session


def main() -> None:
    given = measuring.parse(__doc__, variables=73)
    with session(nproc=job.WORKERS + 1) as rank:
        if rank == 0:
            measure(given)


def run(
    prognostic: job.Prognostic, then: Callable[[int, torch.Tensor], object]
) -> tuple[float, float]:
    """Mean seconds of a step, and of what is done with its state."""
    steps = after = 0.0
    last = time.perf_counter()
    for step, x in prognostic:
        ready = time.perf_counter()
        then(step, x)
        done = time.perf_counter()
        steps += ready - last
        after += done - ready
        last = done
    return steps / job.STEPS, after / (job.STEPS + 1)


def measure(given) -> None:
    prognostic = job.Prognostic(given.variables)
    index = torch.from_numpy(job.taken(given.variables))
    own = torch.zeros((1, 1, job.TAKEN, *job.GRID))
    figures: dict[str, list[float]] = {
        key: [] for key in ("step alone", "step with the farm", "bare copy", "submit")
    }
    with DistributedInference(job.Diagnostic, given.variables) as infer:
        infer.output_coords(job.coords_of(given.variables))

        def copy(step: int, x: torch.Tensor) -> None:
            torch.index_select(x, 2, index, out=own)

        def submit(step: int, x: torch.Tensor) -> None:
            futures.append(infer.submit(x, job.coords_of(given.variables, step)))

        for repeat in range(given.repeats + 1):
            futures: list = []
            alone, bare = run(prognostic, copy)
            farmed, submitted = run(prognostic, submit)
            for future in futures:
                future.result()
            if repeat > 0:  # the first warms up
                for key, value in zip(figures, (alone, farmed, bare, submitted), strict=True):
                    figures[key].append(1e3 * value)
    measuring.tell(f"prognostic, V={given.variables}", figures, "ms", given.json)
    measuring.ratio(
        "step with the farm over alone",
        figures["step with the farm"],
        figures["step alone"],
        "<= 1.03",
    )
    measuring.ratio("submit over bare copy", figures["submit"], figures["bare copy"], "<= 1.2")


if __name__ == "__main__":
    main()
