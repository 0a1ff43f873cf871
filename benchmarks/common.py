"""What the benchmarks share: options, tables, fresh processes; without torch."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "fresh", "machine", "parser", "save", "table", "tell"]

ROOT = Path(__file__).parent.parent
_CHILD = "BENCHMARK "


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
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


def fresh(module: str, task: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Run a part of a benchmark in a process of its own.

    Parameters
    ----------
    module : str
        The benchmark, which gets ``--child`` and the task as JSON, and ends with :func:`tell`.
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
    told: dict[str, Any] = json.loads(lines[-1].removeprefix(_CHILD))
    return told


def tell(figures: Mapping[str, Any]) -> None:
    """Hand figures to the process that called :func:`fresh`."""
    print(_CHILD + json.dumps(figures), flush=True)


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
