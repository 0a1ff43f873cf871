"""Whether tensors reach a worker on another machine as fast as Ray's object store moves them.

Two machines are two network and process namespaces of this one (needs root), each with a raylet:
the driver's and the worker's. Calls carry 83 MB there and one variable back, two at once; beside
them a bare loop of ``ray.put`` and calls of an actor, whose result is read. At the end many smaller
calls show whether the memory of the driver and of the object stores grows.

::

    uv run python -m benchmarks.nodes
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import workload
from benchmarks.common import ROOT, Repeats, in_flight, parser, seconds, table
from testing.machines import lacking, two_machines

COUNT, STEPS = 12, 400
VARIABLES = 26
PORT, DEADLINE = 6379, 550.0


class Sink:
    """Takes some variables and returns the first of them."""

    def __init__(self, taken: int) -> None:
        self._taken = taken

    def input_coords(self):
        coords = workload.Diagnostic(VARIABLES).input_coords()
        return type(coords)(coords, variable=coords["variable"][: self._taken])

    def forward(self, x, coords):
        return x[:, :, :1].clone()


class Bare:
    """The same as an actor of a user of Ray."""

    def forward(self, x):
        return x[:, :, :1].copy()


def measure(given) -> None:
    import ray

    from distinf import DistributedInference, Runtime, session
    from distinf.session.session import current_session

    with session(Runtime(engine="ray", workers=(1, 1), threads=1)):
        prognostic = workload.Prognostic(VARIABLES)
        coords = workload.coords_of(VARIABLES)
        part = prognostic.state(0)[:, :, : workload.TAKEN].clone()
        bare = ray.remote(num_cpus=1)(Bare).remote()
        repeats = Repeats("to another machine", "GB/s")
        with DistributedInference(Sink, workload.TAKEN) as infer:
            assert current_session().farm.transport.carrier == "ray", "they must not share memory"

            def ours(done):
                infer.submit(prognostic.state(0), coords).add_done_callback(done)

            def theirs(done):
                reply = bare.forward.remote(ray.put(part.numpy())).future()
                reply.add_done_callback(lambda ready: (ready.result().sum(), done()))

            for repeat in range(given.repeats + 1):
                for name, send in {"ray.put": theirs, "distinf": ours}.items():
                    spent = in_flight(COUNT, workload.IN_FLIGHT, send)
                    repeats.add(repeat, **{name: COUNT * part.nbytes / spent / 1e9})
        repeats.compare("distinf", "ray.put", "at least 0.9")
        repeats.show(given.json)
        print(table([row for row in memory(ray, DistributedInference, prognostic, coords)]))


def memory(ray, inference, prognostic, coords):
    """Yield the memory of the driver and of the object stores, again and again in many calls."""
    import psutil

    process = psutil.Process()
    all_stores = ray.cluster_resources()["object_store_memory"]
    with inference(Sink, 2) as infer:
        for part in range(5):
            spent = 0.0
            if part:
                send = lambda done: infer.submit(  # noqa: E731
                    prognostic.state(0), coords
                ).add_done_callback(done)
                spent = seconds(lambda: in_flight(STEPS // 4, workload.IN_FLIGHT, send))  # noqa: B023
            free = ray.available_resources()["object_store_memory"]
            yield {
                "calls of 8 MB": part * STEPS // 4,
                "driver MB": process.memory_info().rss // 10**6,
                "object stores MB": round((all_stores - free) / 1e6),
                "s": spent,
            }


def main() -> None:
    made = parser(__doc__, repeats=5)
    given = made.parse_args()
    torch.set_num_threads(1)
    if given.child:
        measure(given)
        return
    if why := lacking():
        raise SystemExit(why)
    own = [
        sys.executable,
        "-m",
        "benchmarks.nodes",
        "--child",
        "{}",
        "--repeats",
        str(given.repeats),
    ]
    own += ["--json", str(Path(given.json).absolute())] if given.json else []
    ray = ["ray", "symmetric-run"]  # with --min-nodes it ends with status 1
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with TemporaryDirectory() as folder, two_machines() as machines:
        token = Path(folder, "token")
        token.write_text(uuid.uuid4().hex)
        running = []
        for cpus, machine in zip((0, 2), machines, strict=True):
            start = [*ray, "--address", f"{machines[0].address}:{PORT}", f"--num-cpus={cpus}", "--"]
            variables = {"PATH": path, "RAY_TMPDIR": str(Path(folder, machine.name))}
            variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
            command = machine.command(*start, *own, **variables)
            running.append(subprocess.Popen(command, cwd=ROOT))
        try:
            if running[0].wait(DEADLINE):
                raise SystemExit("the driver's machine failed: see above")
        finally:
            for process in running:
                process.kill()


if __name__ == "__main__":
    main()
