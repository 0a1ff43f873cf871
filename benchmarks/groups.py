"""Memory and time of a model over the ranks of a group, each a process with its own threads.

::

    uv run python -m benchmarks.groups --ranks 1 2 4
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import parser, save, seconds, table
from benchmarks.memory import resident

TARGET = 0.6  # of the memory of one rank, on each of two
MODELS = ("wind_decomposition", "shallow_water")
TIMEOUT = 3600.0


def measure(
    name: str, grid: tuple[int, int], lmax: int | None, calls: int, rank: int, size: int, store: str
) -> dict[str, Any]:
    """Figures of one rank: MB of memory in all, and beyond what it needs without the model."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch
    import torch.distributed as dist

    from distinf.models import ShallowWater, WindDecomposition

    group = None
    if size > 1:
        import torch_harmonics.distributed

        dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size)
        group = dist.group.WORLD
    else:
        import torch_harmonics  # noqa: F401
    state, coords = steady(*grid)
    if name == "shallow_water":
        model: Any = ShallowWater(*grid, lmax=lmax, step_hours=1, group=group)
    else:
        model = WindDecomposition(lmax=lmax, group=group)
        state, coords["variable"] = state[:, :, :2].clone(), coords["variable"][:2]
    # From here on.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident()["now"]
    times = []
    for _ in range(1 + calls):
        if group is not None:
            dist.barrier(group)
        times.append(seconds(lambda: model(state, coords)))
    after = resident()
    # What was freed goes back to the system.
    ctypes.CDLL(None).malloc_trim(0)
    kept = resident()["now"]
    if group is not None:
        dist.barrier(group)
    return {
        "threads": torch.get_num_threads(),
        "before": before,
        "now": after["now"],
        "peak": after["peak"],
        "kept": kept,
        "first": times[0],
        "call": statistics.median(times[1:]),
    }


def steady(nlat: int, nlon: int) -> tuple[Any, Any]:
    """Steady zonal flow of Williamson et al. (1992), case 2, at 40 m/s."""
    import numpy as np
    import torch

    from distinf.models import ShallowWater
    from distinf.models.sphere import EARTH_OMEGA, EARTH_RADIUS

    coords = ShallowWater(nlat, nlon).input_coords()
    coords["batch"] = np.arange(1)
    lat = np.radians(coords["lat"])[:, None]
    speed = 40.0
    depth = 9.8e4 - (EARTH_RADIUS * EARTH_OMEGA * speed + speed**2 / 2) * np.sin(lat) ** 2
    state = torch.zeros(1, 1, 3, nlat, nlon)
    state[0, 0, 0] = torch.from_numpy(speed * np.cos(lat))
    state[0, 0, 2] = torch.from_numpy(depth)
    return state, coords


def over(size: int, *task: Any) -> dict[str, Any]:
    """Run a task on the ranks of a group: the largest figures of any of them."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(size, multiprocessing.get_context("spawn")) as ranks,
    ):
        store = str(Path(folder) / "store")
        futures = [ranks.submit(measure, *task, rank, size, store) for rank in range(size)]
        found = [future.result(TIMEOUT) for future in futures]
    return {key: max(figures[key] for figures in found) for key in found[0]}


def main() -> None:
    made = parser(__doc__, nlat=1440, nlon=2880, calls=2, threads=1)
    made.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    made.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    made.add_argument("--lmax", type=int, help="degrees; by default those of each model")
    args = made.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    rows: list[dict[str, Any]] = []
    for name in args.models:
        alone: dict[str, Any] = {}
        for size in args.ranks:
            found = over(size, name, (args.nlat, args.nlon), args.lmax, args.calls)
            alone = alone or found
            rows.append(
                {
                    "model": name,
                    "ranks": size,
                    "before MB": found["before"],
                    "resident MB": found["now"],
                    "peak MB": found["peak"],
                    "kept MB": found["kept"],
                    "resident ratio": found["now"] / alone["now"],
                    "peak ratio": found["peak"] / alone["peak"],
                    "kept ratio": found["kept"] / alone["kept"],
                    "model's ratio": _own(found) / _own(alone),
                    "first call s": found["first"],
                    "call s": found["call"],
                }
            )
            print(table(rows[-1:]), flush=True)
    print(
        f"\n{args.nlat} x {args.nlon}, {args.threads} threads a rank; memory of the largest rank;"
    )
    print("a call of shallow_water forecasts one hour; kept: resident without what was freed;")
    print("ratios to the first number of ranks, the model's of kept - before")
    print(f"(wanted: at most {TARGET} on 2 ranks, to 1).\n")
    print(table(rows))
    save(args.json, {"nlat": args.nlat, "nlon": args.nlon, "lmax": args.lmax, "rows": rows})


def _own(figures: dict[str, Any]) -> float:
    """Return what the model keeps."""
    return float(figures["kept"] - figures["before"])


if __name__ == "__main__":
    main()
