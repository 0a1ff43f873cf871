"""Does writing limit a run before the disk does?

uv run python -m benchmarks.writer

Results of 20 variables x 720 x 1440 float32 a step into a forecast store, beside the fastest that
zarr-python alone writes the same chunks: one write a thread and variable, as many threads as cores.
What a forecast store does besides is part of its time: it syncs every file and marks every step.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import zarr

from benchmarks.common import Repeats, parser, seconds
from distinf.options import Output
from distinf.store import ForecastStore, StoreLayout

NLAT, NLON = 720, 1440


def coords_of(variables: int) -> OrderedDict[str, np.ndarray]:
    return OrderedDict(
        time=np.array(["2024-01-01"], "datetime64[ns]"),
        lead_time=np.zeros(1, "timedelta64[ns]"),
        variable=np.array([f"v{i}" for i in range(variables)]),
        lat=np.linspace(90, -90, NLAT, endpoint=False),
        lon=np.linspace(0, 360, NLON, endpoint=False),
    )


def fields(variables: int) -> torch.Tensor:
    """Smooth noise [1, 1, variable, lat, lon], which compresses about as weather does."""
    made = torch.Generator().manual_seed(0)
    white = torch.randn(1, variables, NLAT // 8, NLON // 8, generator=made)
    smooth = torch.nn.functional.interpolate(white, (NLAT, NLON), mode="bicubic")
    return (smooth + 1e-3 * torch.randn(smooth.shape, generator=made))[None]


def ours(path: Path, x: torch.Tensor, steps: int, writers: int) -> float:
    coords = coords_of(x.shape[2])
    leads = np.arange(steps) * np.timedelta64(6, "h").astype("timedelta64[ns]")
    store = ForecastStore(
        path,
        StoreLayout(coords["time"], leads, {"d": coords}),
        Output(writers=writers, check_space=False),
    )

    def write() -> None:
        for lead in leads:
            future: Future[tuple[torch.Tensor, OrderedDict[str, np.ndarray]]] = Future()
            future.set_result((x, OrderedDict(coords, lead_time=np.array([lead]))))
            store.write("d", future)
        store.close()

    return seconds(write)


def plain(path: Path, like: Path, x: torch.Tensor, steps: int, threads: int) -> float:
    """Write the same chunks with the same codecs, by zarr-python alone."""
    shutil.copytree(like, path, ignore=shutil.ignore_patterns("c", ".distinf*"))
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    arrays = [group[f"v{i}"] for i in range(x.shape[2])]
    rows = [x[0, 0, i].numpy() for i in range(x.shape[2])]

    def put(which: tuple[int, int]) -> None:
        step, i = which
        arrays[i][0, step] = rows[i]

    def write() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(put, [(s, i) for s in range(steps) for i in range(len(arrays))]))

    return seconds(write)


def main() -> None:
    options = parser(__doc__, variables=20, steps=6, repeats=5).parse_args()
    cores = len(os.sched_getaffinity(0))
    x = fields(options.variables)
    megabytes = x.nbytes * options.steps / 1e6
    repeats = Repeats(f"{megabytes:.0f} MB", "MB/s")
    folder = Path(tempfile.mkdtemp(prefix="distinf-writer-"))
    try:
        for repeat in range(options.repeats + 1):
            store = folder / "ours.zarr"
            times = {f"distinf, {cores} writers": ours(store, x, options.steps, cores)}
            for threads in sorted({1, cores, 2 * cores}):
                times[f"zarr, {threads} threads"] = plain(
                    folder / "plain.zarr", store, x, options.steps, threads
                )
                shutil.rmtree(folder / "plain.zarr")
            size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
            shutil.rmtree(store)
            repeats.add(repeat, **{name: megabytes / t for name, t in times.items()})
    finally:
        shutil.rmtree(folder)
    repeats.compare(f"distinf, {cores} writers", f"zarr, {cores} threads", "at least 0.8")
    repeats.show(options.json)
    print(f"Compressed: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
