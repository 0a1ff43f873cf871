"""What all benchmarks share: options, timing, tables, fresh processes; without torch."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "ROOT",
    "Repeats",
    "answer",
    "finish",
    "in_flight",
    "machine",
    "parser",
    "run_fresh",
    "save",
    "seconds",
    "table",
]

ROOT = Path(__file__).parent.parent
_CHILD = "BENCHMARK "
_KILLED_SECONDS = 60.0  # ranks of a killed command end within 30 s


def parser(description: str | None, **numbers: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has, and these whole numbers."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name, value in numbers.items():
        made.add_argument(f"--{name}", type=int, default=value, help="a whole number")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    made.add_argument("--child", help=argparse.SUPPRESS)
    return made


def machine() -> dict[str, Any]:
    """Say where figures were taken, and how much else ran there."""
    return {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def save(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write figures and machine as JSON, if a path is given."""
    if path is not None:
        text = json.dumps(_finite({**machine(), **figures}), indent=1, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table in Markdown; numbers to three digits."""
    if not rows:
        return ""
    heads = list(rows[0])
    cells = [heads, *([_cell(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    lines = [
        "| " + " | ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    return "\n".join(lines)


def run_fresh(module: str, task: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Run a part of a benchmark in a process of its own.

    Parameters
    ----------
    module : str
        The benchmark, which gets ``--child`` and the task as JSON, and ends with :func:`answer`.
    task : Mapping[str, Any]
        What to do.
    timeout : float
        Seconds.
    """
    command = [sys.executable, "-m", module, "--child", json.dumps(task)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(_CHILD)]
    if done.returncode or not lines:
        raise SystemExit(f"{module} {task} ended with status {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(_CHILD))
    return found


def finish(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[int | None, str, str]:
    """Run a command, and kill it after so many seconds; return its status, output and errors.

    The status is None if it was killed.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, *process.communicate(timeout=_KILLED_SECONDS)


def answer(figures: Mapping[str, Any]) -> None:
    """Hand figures to the process that called :func:`run_fresh`."""
    print(_CHILD + json.dumps(figures), flush=True)


def seconds(work: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_flight(count: int, limit: int, send: Callable[[Callable[..., None]], None]) -> float:
    """Return the seconds that ``count`` calls take, with at most ``limit`` of them open at once.

    ``send`` begins one call and arranges that the given function is called when it is done.
    """
    room = threading.Semaphore(limit)
    start = time.perf_counter()
    for _ in range(count):
        room.acquire()
        send(lambda *_: room.release())
    for _ in range(limit):
        room.acquire()
    return time.perf_counter() - start


class Repeats:
    """Figures of one measurement that is repeated; the first repeat warms up and is dropped."""

    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit = title, unit
        self.figures: dict[str, list[float]] = {}
        self._ratios: dict[str, float] = {}
        self._lines: list[str] = []

    def add(self, repeat: int, **figures: float) -> None:
        """Keep the figures of a repeat, by name."""
        for name, value in figures.items() if repeat > 0 else ():
            self.figures.setdefault(name, []).append(value)

    def compare(self, ours: str, other: str, wanted: str) -> None:
        """Take the median over the repeats of the ratio of two figures."""
        pairs = zip(self.figures[ours], self.figures[other], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        self._ratios[f"{ours} / {other}"] = ratio
        self._lines.append(f"{ours} / {other}: {ratio:.3f} (wanted: {wanted})")

    def show(self, path: Path | None) -> None:
        """Print medians, ranges and ratios, and save all figures."""
        rows = [
            {
                self.title: name,
                f"median {self.unit}": statistics.median(values),
                "least": min(values),
                "most": max(values),
            }
            for name, values in self.figures.items()
        ]
        print(table(rows), *self._lines, sep="\n")
        save(path, {"title": self.title, "unit": self.unit, **self.figures, **self._ratios})


def _finite(value: Any) -> Any:
    """Replace infinity, which JSON does not have, by null."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if value in (math.inf, -math.inf) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
