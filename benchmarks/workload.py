"""The workload of comparisons: a forecast whose diagnostic takes four times as long as a step.

The prognostic and the diagnostic sleep instead of computing, so that two cores can show what any
number of GPUs would do. What is not slept is real: the state's memory, the selection, the
transport, and the writing of durable Zarr chunks.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import zarr

from distinf.store.destination import DurableStore

WORKERS = 4
STEPS = 40
STEP_SECONDS = 0.05
CALL_SECONDS = 0.2
TAKEN = 20
GRID = (720, 1440)
IDEAL = STEPS * STEP_SECONDS + CALL_SECONDS
IN_FLIGHT = 2  # on each worker: one computes, the next one's input travels
WRITERS = 2

TIME = np.array(["2023-06-01"], dtype="datetime64[ns]")
LEADS = np.arange(STEPS + 1).astype("timedelta64[h]").astype("timedelta64[ns]")


def names(variables: int) -> np.ndarray:
    return np.array([f"v{i:02d}" for i in range(variables)])


def taken(variables: int) -> np.ndarray:
    """Which variables the diagnostic takes: spread over the state, the last one first."""
    return np.linspace(variables - 1, 0, TAKEN).astype(np.int64)


def coords_of(variables: int, step: int = 0) -> OrderedDict[str, np.ndarray]:
    return OrderedDict(
        time=TIME,
        lead_time=LEADS[step : step + 1],
        variable=names(variables),
        lat=np.linspace(90, -90, GRID[0], endpoint=False),
        lon=np.linspace(0, 360, GRID[1], endpoint=False),
    )


class Prognostic:
    """Steps a state forward, in memory that it uses again after eight steps."""

    def __init__(self, variables: int) -> None:
        self.variables = variables
        generator = torch.Generator().manual_seed(0)
        first = torch.rand((1, 1, variables, *GRID), generator=generator)
        self._states = [first, *(first.clone() for _ in range(7))]

    def state(self, step: int) -> torch.Tensor:
        x = self._states[step % len(self._states)]
        x[..., 0, :8] = step
        return x

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        for step in range(STEPS + 1):
            if step > 0:
                time.sleep(STEP_SECONDS)
            yield step, self.state(step)


class Diagnostic:
    """Takes 20 variables and returns one."""

    def __init__(self, variables: int) -> None:
        self._taken = names(variables)[taken(variables)]

    def input_coords(self) -> OrderedDict[str, np.ndarray]:
        coords = OrderedDict(coords_of(TAKEN), variable=self._taken)
        return OrderedDict(coords, time=np.empty(0), lead_time=np.empty(0))

    def output_coords(self, coords: OrderedDict[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        return OrderedDict(coords, variable=np.array(["result"]))

    def forward(self, x: Any, coords: Any) -> Any:
        return torch.from_numpy(diagnose(x.numpy())), self.output_coords(coords)


def diagnose(x: np.ndarray) -> np.ndarray:
    """Sleep, and double the first variable of [1, 1, 20, lat, lon]."""
    time.sleep(CALL_SECONDS)
    return 2 * x[:, :, :1]


class Results:
    """A peer's store: one durable chunk a lead, from as many threads as distinf writes with."""

    def __init__(self, path: str) -> None:
        self._array = zarr.create_array(
            DurableStore(path), shape=(STEPS + 1, *GRID), chunks=(1, *GRID), dtype="float32"
        )
        self._writers = ThreadPoolExecutor(WRITERS)
        self._written = []

    def write(self, step: int, result: Callable[[], np.ndarray]) -> None:
        """Write a result in the background; ``result`` fetches it there."""
        self._written.append(self._writers.submit(self._write, step, result))

    def _write(self, step: int, result: Callable[[], np.ndarray]) -> None:
        self._array[step] = np.asarray(result()).reshape(GRID)

    def close(self) -> None:
        """Return when everything is on disk."""
        for written in self._written:
            written.result()


def check(array: Any) -> None:
    """Refuse results [lead, lat, lon] that are not those of the workload."""
    for step in range(STEPS + 1):
        chunk = np.asarray(array[step])
        if not (chunk[0, :8] == 2 * step).all() or not np.isfinite(chunk).all():
            raise SystemExit(f"step {step} is wrong: {chunk[0, :8]}")


def arguments() -> tuple[int, str]:
    """The number of variables and where to write, from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variables", type=int, required=True)
    parser.add_argument("--output", required=True)
    given = parser.parse_args()
    return given.variables, given.output


def check_and_report(seconds: float, path: str) -> None:
    """Check what was written and print the outcome for `benchmarks.comparison`."""
    check(zarr.open_array(path, mode="r"))
    report(seconds)


def report(seconds: float, **more: Any) -> None:
    """Print the outcome for `benchmarks.comparison`."""
    print(json.dumps({"seconds": seconds, **more}), flush=True)


def one_thread() -> None:
    """As distinf does: every rank computes on one thread."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
