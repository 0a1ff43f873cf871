"""Models that sleep, and runs of them through distinf as it is."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distinf import DistributedInference, Runtime, session
from distinf.options import Output
from distinf.report.events import Event, Events, Totals
from distinf.report.progress import Progress
from distinf.session.session import current_session
from distinf.store import ForecastStore, StoreLayout

__all__ = ["Measured", "Sleeping", "run", "session_of", "warm_up"]

TIME = np.datetime64("2000-01-01", "ns")
STEP = np.timedelta64(1, "h").astype("m8[ns]")
WRITERS = 2
COLUMNS = 256


def session_of(workers: int, engine: str, timeout: float) -> AbstractContextManager[int]:
    """Open a session of this process's own workers, on two cores if need be."""
    if engine == "ray":
        ray = Runtime(
            engine="ray",
            address="local",
            workers=(workers, workers),
            resources={"CPU": 1},
            wait_for_workers=timeout,
        )
        return session(ray)
    return session(Runtime(start_timeout=timeout), nproc=workers + 1)


class Sleeping:
    """A diagnostic that sleeps and returns a part of its input as one variable.

    Parameters
    ----------
    seconds : float
        How long a call takes.
    rows : int
        Rows of the result.
    """

    def __init__(self, seconds: float, rows: int) -> None:
        self.seconds, self.rows = seconds, rows

    def forward(self, x: torch.Tensor, coords: Any) -> tuple[torch.Tensor, Any]:
        """Cut [time=1, lead_time=1, variable, row, column] down to one variable."""
        time.sleep(self.seconds)
        return x[:, :, :1, : self.rows].clone(), grid(coords["lead_time"], self.rows, x.shape[-1])


def grid(lead_time: np.ndarray, rows: int, columns: int, variables: Sequence[str] = ("y",)) -> Any:
    """Coords of a state of one time."""
    return OrderedDict(
        time=np.array([TIME]),
        lead_time=lead_time,
        variable=np.array(variables),
        lat=np.linspace(90, -90, rows),
        lon=np.linspace(0, 360, columns, endpoint=False),
    )


@dataclass
class Measured:
    """What a run showed; times in seconds.

    Parameters
    ----------
    wall : float
        From the first step to the last result that is written.
    totals : Totals
        Of its events.
    submit : float
        Computing time of the submitting thread in a submit.
    own : float
        Computing time of the driver's process for a task.
    """

    wall: float
    totals: Totals
    submit: float
    own: float


def warm_up(
    infer: DistributedInference, nbytes: int = 4096, rows: int = 2, workers: int = 1
) -> None:
    """Let the first calls of so many workers happen, with inputs of the size to come."""
    while len(infer.remote_ranks) < workers:  # those of Ray join one by one
        time.sleep(0.1)
    states = (state(step, nbytes, rows) for step in range(3 * len(infer.remote_ranks)))
    for _ in infer.starmap(states, buffersize=4 * len(infer.remote_ranks)):
        pass


def state(step: int, nbytes: int, rows: int) -> tuple[torch.Tensor, Any]:
    """Make a state of at least this size, and its coords."""
    x = torch.ones(1, 1, 1, max(rows, nbytes // (4 * COLUMNS)), COLUMNS)
    return x, grid(np.array([step * STEP]), x.shape[-2], COLUMNS)


def run(
    infer: DistributedInference,
    states: int,
    prognostic: float,
    nbytes: int,
    rows: int,
    progress: bool = False,
) -> Measured:
    """Run a sleeping prognostic, diagnose each state, write each result; as recipes do.

    Parameters
    ----------
    infer : DistributedInference
        Holds `Sleeping`, and is warm.
    states : int
        States of the prognostic; the first is there at once.
    prognostic : float
        Seconds of a step.
    nbytes : int
        Of a state.
    rows : int
        Of a result.
    progress : bool, optional
        Whether to show it, by default False.
    """
    farm = current_session().farm
    events = farm.events = Events()  # without those of earlier runs
    x, coords = state(0, nbytes, rows)
    leads = np.arange(states) * STEP
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="distinf-benchmark-"))
        store = ForecastStore(
            Path(folder) / "x.zarr",
            StoreLayout(np.array([TIME]), leads, {"sleeping": grid(leads[:1], rows, COLUMNS)}),
            Output(writers=WRITERS),
            events=events,
            pending=2 * (len(infer.remote_ranks) + WRITERS),
        )
        stack.enter_context(store)
        if progress:
            stack.enter_context(Progress(events, states, status=farm.status))
        submitting, process, start = 0.0, time.process_time(), time.perf_counter()
        for step in range(states):
            before = time.time()
            if step:
                time.sleep(prognostic)
            events.record(Event("forecast", f"step {step}", 0, before, time.time()))
            coords["lead_time"] = leads[step : step + 1]
            thread = time.thread_time()
            future = infer.submit(x, coords)
            submitting += time.thread_time() - thread
            store.write("sleeping", future)
        store.close()
        wall = time.perf_counter() - start
        own = (time.process_time() - process) / states
    return Measured(wall, events.totals, submitting / states, own)


def driver() -> dict[str, int]:
    """Tell what the driver's process holds: threads, descriptors, resident memory in MB."""
    import psutil

    process = psutil.Process()
    return {
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "resident MB": process.memory_info().rss // 10**6,
        "Python threads": threading.active_count(),
    }
