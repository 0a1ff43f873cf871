"""Seconds from a killed worker on Ray to the next task of the one that takes its place.

The default run with two workers, one of which is killed during its first calls.

::

    uv run python -m benchmarks.replacement
"""

from __future__ import annotations

import re
import signal
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil

from benchmarks.commands import run_main
from benchmarks.common import Repeats, parser
from testing.processes import marked

TIMEOUT = 300.0
OVERRIDES = ["runtime.engine=ray", "runtime.address=local", "runtime.workers=2"]


def kill_a_worker(folder: Path, marker: str, killed: list[float]) -> None:
    """Kill one of the workers as soon as one of them has done a task."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if any(
            '"diagnose"' in path.read_text() for path in folder.glob("outputs/*/*/events.jsonl")
        ):
            workers = [p for p in marked(marker) if "RayWorker" in psutil.Process(p).name()]
            psutil.Process(workers[0]).send_signal(signal.SIGKILL)
            killed.append(time.time())
            return


def measure(folder: Path) -> float:
    marker, killed = uuid.uuid4().hex, []
    threading.Thread(target=kill_a_worker, args=(folder, marker, killed), daemon=True).start()
    run = run_main(folder, OVERRIDES, TIMEOUT, DISTINF_TEST_RUN=marker)
    log = "".join(path.read_text() for path in folder.glob("outputs/*/*/*.log"))
    lost = re.search(r"rank (\d+) was lost", log)
    if lost is None or not killed:
        raise SystemExit(f"no worker was lost:\n{log}")
    later = [e.start for e in run.events if e.kind == "diagnose" and e.rank == int(lost[1])]
    return min(start for start in later if start > killed[0]) - killed[0]


def main() -> None:
    given = parser(__doc__, repeats=3).parse_args()
    repeats = Repeats("a killed worker", "s")
    with tempfile.TemporaryDirectory(prefix="distinf-benchmark-") as folder:
        for repeat in range(given.repeats):
            repeats.add(1, **{"to its next task": measure(Path(folder) / str(repeat))})
    repeats.show(given.json)


if __name__ == "__main__":
    main()
