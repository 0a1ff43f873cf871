"""How fast tensors reach a worker and results come back, beside the machine's memory copy.

::

    uv run python -m benchmarks.payload
"""

import os

import torch

from benchmarks import job, measuring
from distinf import DistributedInference, session
from distinf.session.session import current_session

COUNT = 30


class Sink:
    """Takes the 20 variables; reads them only if it is told to."""

    def __init__(self, variables: int) -> None:
        self._job = job.Diagnostic(variables)
        self._result = torch.rand((1, 1, job.TAKEN, *job.GRID))

    def input_coords(self):
        return self._job.input_coords()

    def output_coords(self, coords):
        return self._job.output_coords(coords)

    def forward(self, x, coords, what):
        if what == "return":
            return self._result
        return float(x.sum()) if what == "read" else float(x[0, 0, 0, 0, 0])


def copy_rate(x: torch.Tensor, out: torch.Tensor) -> float:
    """The best of one thread and of as many as there are cores, GB/s."""
    threads = torch.get_num_threads()
    rates = []
    for number in {1, os.cpu_count() or 1}:
        torch.set_num_threads(number)
        out.copy_(x)
        spent = measuring.seconds(lambda: [out.copy_(x) for _ in range(COUNT)])
        rates.append(COUNT * x.nbytes / spent / 1e9)
    torch.set_num_threads(threads)
    return max(rates)


def main() -> None:
    given = measuring.parse(__doc__, variables=26)
    with session(nproc=2) as rank:
        if rank == 0:
            measure(given)


def measure(given) -> None:
    prognostic = job.Prognostic(given.variables)
    coords = job.coords_of(given.variables)
    part = prognostic.state(0)[:, :, : job.TAKEN].clone()
    out = torch.zeros_like(part)
    figures: dict[str, list[float]] = {
        key: [] for key in ("memory copy", "to the worker", "to the worker, and read", "back")
    }
    with DistributedInference(Sink, given.variables) as infer:
        infer.output_coords(coords)

        def take(done):
            infer.submit(prognostic.state(0), coords, "take").add_done_callback(done)

        def read(done):
            infer.submit(prognostic.state(0), coords, "read").add_done_callback(done)

        def back(done):
            infer.submit(None, None, "return").add_done_callback(done)

        for repeat in range(given.repeats + 1):
            rates = [copy_rate(part, out)]
            for send in (take, read, back):
                spent = measuring.in_flight(COUNT, job.IN_FLIGHT, send)
                rates.append(COUNT * part.nbytes / spent / 1e9)
            if repeat > 0:  # the first warms up
                for key, value in zip(figures, rates, strict=True):
                    figures[key].append(value)
    carrier = current_session().farm.transport.carrier
    measuring.tell(f"payload, {carrier}", figures, "GB/s", given.json)
    for key in ("to the worker", "back"):
        measuring.ratio(f"{key} over memory copy", figures[key], figures["memory copy"], ">= 0.7")


if __name__ == "__main__":
    main()
