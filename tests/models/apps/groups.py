"""Run the models on one rank, then over groups of ranks, twice each; write what every rank got."""

import logging
import multiprocessing
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from distinf.models import GalewskyJet, ShallowWater, WindDecomposition
from distinf.models.sphere import regular_grid

NLAT, NLON, STEPS = 32, 64, 3
DEADLINE = 90.0  # s, of one group
LOGGED: list[str] = []


class Keep(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        LOGGED.append(record.getMessage())


def start(members: int = 2) -> np.ndarray:
    """Noisy jets (member, variable, lat, lon)."""
    source = GalewskyJet(NLAT, NLON)
    state = np.asarray(source(np.datetime64("2000-01-01"), ["u850", "v850", "z850"]).values[0])
    noise = np.random.default_rng(1).standard_normal((members, *state.shape))
    return (state + noise * np.array([1, 1, 100])[:, None, None]).astype(np.float32)


def forecast(group=None) -> dict[str, np.ndarray]:
    """Steps of two members, by the iterator, and the last of them again by a call."""
    model = ShallowWater(NLAT, NLON, dt=7200, group=group)
    coords = model.input_coords()
    coords["batch"] = np.arange(2)
    x = torch.from_numpy(start())[:, None]
    states = list(islice(model.create_iterator(x, coords), STEPS + 1))
    called, _ = model(*states[-2])
    assert torch.equal(called, states[-1][0])
    names = "uvz"
    return {
        f"{name} step {step}": states[step][0][:, 0, i].numpy()
        for step in range(STEPS + 1)
        for i, name in enumerate(names)
    }


def decompose(group=None) -> dict[str, np.ndarray]:
    found = {}
    _, lon = regular_grid(NLAT, NLON)
    rows = {
        "poles": np.linspace(90, -90, NLAT + 1),
        "midpoints": np.linspace(90, -90, NLAT + 1)[:-1] - 90 / NLAT,
    }
    for name, lat in rows.items():
        model = WindDecomposition(levels=[850, "10m"], group=group)
        coords = OrderedDict(
            batch=np.arange(2), variable=model.input_coords()["variable"], lat=lat, lon=lon
        )
        noise = np.random.default_rng(2).standard_normal((2, 4, len(lat), NLON))
        y, out = model(torch.from_numpy(10 * noise.astype(np.float32)), coords)
        for i, variable in enumerate(out["variable"]):
            found[f"{variable} {name}"] = y[:, i].numpy()
    return found


def both(group=None) -> dict[str, np.ndarray]:
    # As workers call it.
    with torch.inference_mode():
        decomposed = decompose(group)
    return {**forecast(group), **decomposed}


def one_rank(folder: Path) -> None:
    np.savez(folder / "1.npz", **both())
    assert "torch_harmonics.distributed" not in sys.modules
    assert not dist.is_initialized()


def over_ranks(rank: int, size: int, folder: Path, run: int) -> None:
    found = both(dist.group.WORLD)
    np.savez(folder / f"{size}-{run}-{rank}.npz", **found, logged=len(LOGGED))


def other_groups(rank: int, size: int, folder: Path) -> None:
    """Groups of one rank, another group beside the first, and one after it."""
    words = {}

    def refused(name: str, make: Callable[[], object]) -> None:
        try:
            make()
            words[name] = "accepted"
        except ValueError as error:
            words[name] = str(error)

    alone = [dist.new_group([i]) for i in range(size)]
    whole = both(alone[rank])
    assert "torch_harmonics.distributed" not in sys.modules
    refused("outside", lambda: ShallowWater(NLAT, NLON, group=alone[1 - rank]))
    first, second = (dist.new_group(range(size)) for _ in range(2))
    split = both(first)
    ShallowWater(NLAT, NLON, group=first)
    refused("beside", lambda: WindDecomposition(group=second))
    refused("small model", lambda: ShallowWater(NLAT, NLON, lmax=3, group=first))
    small = WindDecomposition(lmax=3, group=first)
    coords = OrderedDict(small.input_coords(), batch=np.arange(1))
    coords["lat"], coords["lon"] = regular_grid(NLAT, NLON)
    refused("small grid", lambda: small(torch.zeros(1, 2, NLAT, NLON), coords))
    dist.destroy_process_group(first)
    again = both(second)
    assert all(np.array_equal(split[name], again[name]) for name in split)
    np.savez(folder / f"alone-{rank}.npz", **whole, **words)


def member(rank: int, size: int, folder: Path, work: Callable[..., None], args: tuple) -> None:
    path = folder / f"store-{work.__name__}-{size}-{'-'.join(map(str, args))}"
    dist.init_process_group(
        "gloo", f"file://{path}", rank=rank, world_size=size, timeout=timedelta(seconds=DEADLINE)
    )
    work(rank, size, folder, *args)
    dist.destroy_process_group()


def spread(size: int, folder: Path, work: Callable[..., None], *args: int) -> None:
    """Fork the ranks of a group, which saves their imports; end all when one fails."""
    make = multiprocessing.get_context("fork").Process
    ranks = [make(target=member, args=(i, size, folder, work, args)) for i in range(size)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + DEADLINE
    while any(p.is_alive() for p in ranks) and not any(p.exitcode for p in ranks):
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    failed = any(process.exitcode != 0 for process in ranks)
    for process in ranks:
        process.kill()
        process.join()
    if failed:
        raise SystemExit(f"{work.__name__} on {size} ranks failed")


if __name__ == "__main__":
    to, *sizes = sys.argv[1:]
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    logging.getLogger("distinf").addHandler(Keep())
    one_rank(Path(to))
    LOGGED.clear()
    if "others" in sizes:
        spread(2, Path(to), other_groups)
    # Once for all ranks that are forked.
    import torch_harmonics.distributed  # noqa: F401

    for size in sizes:
        for run in range(2) if size != "others" else ():
            spread(int(size), Path(to), over_ranks, run)
