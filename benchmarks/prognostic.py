"""Whether the farm holds up the prognostic: its own step time, and the time of ``submit``.

::

    uv run python -m benchmarks.prognostic
"""

import time
from collections.abc import Callable

import torch

from benchmarks import workload
from benchmarks.common import Repeats, parser
from distinf import DistributedInference, session


def main() -> None:
    given = parser(__doc__, variables=73, repeats=5).parse_args()
    with session(nproc=workload.WORKERS + 1) as rank:
        if rank == 0:
            measure(given)


def run(
    prognostic: workload.Prognostic, then: Callable[[int, torch.Tensor], object]
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
    return steps / workload.STEPS, after / (workload.STEPS + 1)


def measure(given) -> None:
    prognostic = workload.Prognostic(given.variables)
    index = torch.from_numpy(workload.taken(given.variables))
    own = torch.zeros((1, 1, workload.TAKEN, *workload.GRID))
    repeats = Repeats(f"prognostic, V={given.variables}", "ms")
    with DistributedInference(workload.Diagnostic, given.variables) as infer:
        infer.output_coords(workload.coords_of(given.variables))

        def copy(step: int, x: torch.Tensor) -> None:
            torch.index_select(x, 2, index, out=own)

        def submit(step: int, x: torch.Tensor) -> None:
            futures.append(infer.submit(x, workload.coords_of(given.variables, step)))

        for repeat in range(given.repeats + 1):
            futures: list = []
            alone, bare = run(prognostic, copy)
            farmed, submitted = run(prognostic, submit)
            for future in futures:
                future.result()
            times = {"step alone": alone, "step with the farm": farmed}
            times |= {"bare copy": bare, "submit": submitted}
            repeats.add(repeat, **{name: 1e3 * value for name, value in times.items()})
    repeats.compare("step with the farm", "step alone", "at most 1.03")
    repeats.compare("submit", "bare copy", "at most 1.2")
    repeats.show(given.json)


if __name__ == "__main__":
    main()
