"""How fast tensors reach a worker and results come back, beside the machine's memory copy.

::

    uv run python -m benchmarks.payload
"""

import os

import torch

from benchmarks import workload
from benchmarks.common import Repeats, in_flight, parser, seconds
from distinf import DistributedInference, session
from distinf.session.session import current_session

COUNT = 30


class Sink:
    """Takes the 20 variables; reads them only if it is told to."""

    def __init__(self, variables: int) -> None:
        self._diagnostic = workload.Diagnostic(variables)
        self._result = torch.rand((1, 1, workload.TAKEN, *workload.GRID))

    def input_coords(self):
        return self._diagnostic.input_coords()

    def output_coords(self, coords):
        return self._diagnostic.output_coords(coords)

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
        spent = seconds(lambda: [out.copy_(x) for _ in range(COUNT)])
        rates.append(COUNT * x.nbytes / spent / 1e9)
    torch.set_num_threads(threads)
    return max(rates)


def main() -> None:
    given = parser(__doc__, variables=26, repeats=5).parse_args()
    with session(nproc=2) as rank:
        if rank == 0:
            measure(given)


def measure(given) -> None:
    prognostic = workload.Prognostic(given.variables)
    coords = workload.coords_of(given.variables)
    part = prognostic.state(0)[:, :, : workload.TAKEN].clone()
    out = torch.zeros_like(part)
    carrier = current_session().farm.transport.carrier
    repeats = Repeats(f"payload, {carrier}", "GB/s")
    with DistributedInference(Sink, given.variables) as infer:
        infer.output_coords(coords)

        def take(done):
            infer.submit(prognostic.state(0), coords, "take").add_done_callback(done)

        def read(done):
            infer.submit(prognostic.state(0), coords, "read").add_done_callback(done)

        def back(done):
            infer.submit(None, None, "return").add_done_callback(done)

        for repeat in range(given.repeats + 1):
            rates = {"memory copy": copy_rate(part, out)}
            ways = {"to the worker": take, "to the worker, and read": read, "back": back}
            for name, send in ways.items():
                spent = in_flight(COUNT, workload.IN_FLIGHT, send)
                rates[name] = COUNT * part.nbytes / spent / 1e9
            repeats.add(repeat, **rates)
    for name in ("to the worker", "back"):
        repeats.compare(name, "memory copy", "at least 0.7")
    repeats.show(given.json)


if __name__ == "__main__":
    main()
