"""Timing, and printing what was timed."""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parse(text: str, **defaults: int) -> argparse.Namespace:
    """Command-line options: those named, ``--repeats`` and ``--json``."""
    parser = argparse.ArgumentParser(description=text)
    for name, value in {**defaults, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path, help="a file for all figures")
    return parser.parse_args()


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_flight(count: int, limit: int, send: Callable[[Callable[..., None]], None]) -> float:
    """Seconds for so many calls, of which no more than ``limit`` are open at once.

    ``send`` begins one and has the function that it is given called when it is done.
    """
    room = threading.Semaphore(limit)
    start = time.perf_counter()
    for _ in range(count):
        room.acquire()
        send(lambda *_: room.release())
    for _ in range(limit):
        room.acquire()
    return time.perf_counter() - start


def tell(name: str, figures: dict[str, list[float]], unit: str, path: Path | None) -> None:
    """Print medians, and their range."""
    print(name)
    for key, values in figures.items():
        middle = statistics.median(values)
        print(f"  {key:46} {middle:9.3f} {unit}   {min(values):.3f} to {max(values):.3f}")
    if path is not None:
        told = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**told, name: figures}, indent=1) + "\n")


def ratio(name: str, ours: list[float], theirs: list[float], target: str) -> None:
    """Print the median of the ratios of each repeat, and what it should be."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"  {name:46} {statistics.median(ratios):9.3f}     target {target}")
