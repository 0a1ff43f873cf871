"""An archive on one worker and on two, also with scores, beside a plain loop in one process.

States of 721 x 1440 in a Zarr store with a chunk for each step; a diagnostic that takes the given
time. Wall times are from the first read to the last write.

::

    uv run python -m benchmarks.archive
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.commands import run_main
from benchmarks.common import Repeats, answer, parser, run_fresh

TIMEOUT = 500.0


def make(path: Path, steps: int, name: str = "u850") -> None:
    """Write an archive of random fields, one chunk a step."""
    import xarray as xr

    lat, lon = np.linspace(90, -90, 721), np.linspace(0, 360, 1440, endpoint=False)
    times = np.datetime64("2023-06-01", "ns") + np.arange(steps) * np.timedelta64(6, "h")
    draw = np.random.default_rng(0)
    for i in range(steps):
        field = draw.normal(size=(1, 721, 1440)).astype("f4")
        coords = {"time": times[i : i + 1], "lat": lat, "lon": lon}
        part = xr.Dataset({name: (list(coords), field)}, coords)
        encoding = {"time": {"units": "hours since 1970-01-01"}}
        more: dict[str, Any] = {"append_dim": "time"} if i else {"mode": "w", "encoding": encoding}
        part.to_zarr(path, consolidated=False, **more)


def plain(source: str, out: str, seconds: float) -> float:
    """Read, diagnose and write one step after the other, as a script would."""
    import torch
    import xarray as xr
    from earth2studio.data import fetch_data
    from earth2studio.io import ZarrBackend

    from distinf.models import FileSource
    from testing.faulty import Faulty

    data, model = FileSource(source), Faulty({}, seconds=seconds)
    times = data.coords["time"].values
    store = ZarrBackend(out, chunks={"time": 1, "lead_time": 1}, backend_kwargs={"overwrite": True})
    torch.set_num_threads(1)
    began = time.time()
    for i in range(len(times)):
        x, coords = fetch_data(data, times[i : i + 1], np.array(["u850"]))
        y, y_coords = model(x, coords)
        if i == 0:
            whole = {**y_coords, "time": times}
            whole.pop("variable")
            store.add_array(whole, ["twice"])
        y_coords.pop("variable")
        store.write(y[:, :, 0], y_coords, "twice")
    ended = time.time()
    assert xr.open_zarr(out).sizes["time"] == len(times)
    return ended - began


def scores(truth: Path) -> str:
    """Setting for scores of every result against data."""
    data = f"{{_target_: distinf.models.FileSource, path: {truth}}}"
    return f"output.verification={{data: {data}}}"


def ours(folder: Path, source: Path, workers: int, seconds: float, *words: str) -> float:
    run = run_main(
        folder,
        [
            *("--config-name=archive", f"data.path={source}", "~diagnostic.wind_speed"),
            "+diagnostic.sleeping._target_=testing.faulty.Faulty",
            "+diagnostic.sleeping.faults={}",
            f"+diagnostic.sleeping.seconds={seconds}",
            f"runtime.nproc={workers + 1}",
            *words,
        ],
        TIMEOUT,
    )
    reads = [event.start for event in run.events if event.kind == "read"]
    return max(event.end for event in run.events if event.kind == "write") - min(reads)


def main() -> None:
    made = parser(__doc__, repeats=3, steps=40)
    made.add_argument("--seconds", type=float, default=0.5, help="of a diagnostic call")
    given = made.parse_args()
    if given.child:
        answer({"wall": plain(**json.loads(given.child))})
        return
    repeats = Repeats("an archive", "s")
    with tempfile.TemporaryDirectory(prefix="distinf-benchmark-") as home:
        source = Path(home, "in.zarr")
        make(source, given.steps)
        truth = Path(home, "truth.zarr")
        make(truth, given.steps, "twice")
        for repeat in range(given.repeats):
            task = {"source": str(source), "out": f"{home}/plain.zarr", "seconds": given.seconds}
            found = {"plain loop": run_fresh("benchmarks.archive", task, TIMEOUT)["wall"]}
            for workers in (1, 2):
                folder = Path(home, f"{repeat} {workers}")
                found[f"{workers} worker(s)"] = ours(folder, source, workers, given.seconds)
            folder, words = Path(home, f"{repeat} scores"), scores(truth)
            found["2, with scores"] = ours(folder, source, 2, given.seconds, words)
            repeats.add(1, **found)
    repeats.compare("1 worker(s)", "2 worker(s)", "1.8")
    repeats.compare("2, with scores", "2 worker(s)", "at most 1.1")
    repeats.compare("1 worker(s)", "plain loop", "at most 1.15")
    repeats.show(given.json)


if __name__ == "__main__":
    main()
