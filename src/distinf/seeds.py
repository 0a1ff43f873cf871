"""The seed of each random draw, made of the run's seed and the purpose of the draw."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def task_seed(
    seed: int,
    diagnostic: str,
    time: np.datetime64 | None = None,
    lead_time: np.timedelta64 | None = None,
    ensemble: int | None = None,
) -> int:
    """Seed of one task; it does not depend on the worker or the order of the tasks.

    Parameters
    ----------
    seed : int
        The run's seed, ``runtime.seed``.
    diagnostic : str
        Name of the diagnostic; ``"perturbation"`` for that of an initial condition and
        ``"prognostic"`` for the draws of a stochastic prognostic.
    time, lead_time, ensemble : np.datetime64, np.timedelta64, int, optional
        Initial time, lead time and member.

    Returns
    -------
    int
        From 0 to 2**32 - 1, the range of NumPy's global generator.
    """
    words = [
        str(int(seed)),
        diagnostic,
        _nanoseconds(time, "datetime64[ns]"),
        _nanoseconds(lead_time, "timedelta64[ns]"),
        "" if ensemble is None else str(int(ensemble)),
    ]
    return int.from_bytes(hashlib.sha256("|".join(words).encode()).digest()[:4], "little")


def seed_of(seed: int, diagnostic: str, coords: Mapping[str, np.ndarray]) -> int:
    """`task_seed` of the first time, the last lead time and the first member of these coords."""

    def pick(key: str, index: int) -> Any:
        values = coords.get(key)
        return values[index] if values is not None and len(values) else None

    return task_seed(seed, diagnostic, pick("time", 0), pick("lead_time", -1), pick("ensemble", 0))


def _nanoseconds(value: Any, kind: str) -> str:
    return "" if value is None else str(np.asarray(value, kind).astype(np.int64))


_generators = threading.RLock()
_LOOK_UP_SECONDS = 1.0


@contextmanager
def only_drawing(check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep other threads of this process from the global generators.

    Rank 0 may run a diagnostic while its prognostic steps. Who waits calls ``check`` from time to
    time, which may raise.
    """
    while not _generators.acquire(timeout=_LOOK_UP_SECONDS):
        check()
    try:
        yield
    finally:
        _generators.release()


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the global generators of Python, NumPy, torch and a device; restore them afterwards."""
    device = torch.device(device)
    with only_drawing():
        before = random.getstate(), np.random.get_state()  # noqa: NPY002  # models use it
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed_all(seed)
            try:
                yield
            finally:
                random.setstate(before[0])
                np.random.set_state(before[1])  # noqa: NPY002


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def generators(device: torch.device | str = "cpu") -> dict[str, np.ndarray]:
    """Return the states of the global generators of Python, NumPy and torch as arrays."""
    own = random.getstate()[1]
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    last = [numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]]
    found = {
        "python": np.array(own, dtype=np.uint64),
        "numpy": np.append(numpy["state"]["key"].astype(np.float64), last),
        "torch": torch.get_rng_state().numpy(),
    }
    if torch.device(device).type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device).numpy()
    return found


def set_generators(states: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> None:
    """Restore the states that :func:`generators` returned."""
    random.setstate((3, tuple(map(int, states["python"])), None))
    *key, place, has_gauss, gauss = states["numpy"]
    np.random.set_state(  # noqa: NPY002
        ("MT19937", np.array(key, np.uint32), int(place), int(has_gauss), float(gauss))
    )
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    if torch.device(device).type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.from_numpy(states["cuda"]), device)
