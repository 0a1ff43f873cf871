"""Runs of main.py as users make them, and what they leave; without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from distinf.report.events import Event, Totals

__all__ = ["Command", "environment", "fcn_and_climatenet", "run_main", "shallow_water"]

TIME = "2023-06-01T00:00:00"
_MAKE = """
import sys
from pathlib import Path
from testing import packages
home = Path(sys.argv[1])
packages.fcn(home / "fcn")
packages.climatenet(home / "climatenet")
packages.fields_file(home / "fields.nc", [sys.argv[2]])
"""


@dataclass
class Command:
    """What a run of main.py left.

    Parameters
    ----------
    begun, ended : float
        When the command was given and when it had ended, in seconds since the epoch.
    configured, ready : float
        When Hydra had made the run's folder, and when the ranks had met, all models were loaded
        and the store was there.
    events : list[Event]
        Its events.
    """

    begun: float
    ended: float
    configured: float
    ready: float
    events: list[Event]

    @property
    def totals(self) -> Totals:
        totals = Totals()
        for event in self.events:
            totals.add(event)
        return totals

    def first(self, kind: str) -> Event:
        """Return the first event of a kind."""
        return min((e for e in self.events if e.kind == kind), key=lambda e: e.start)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Environment of a user's shell, with caches in a folder."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    clean = {key: value for key, value in os.environ.items() if key not in launcher}
    clean["PYTHONPATH"] = os.pathsep.join(
        path for path in (str(ROOT), clean.get("PYTHONPATH")) if path
    )
    return {**clean, "EARTH2STUDIO_CACHE": str(folder / "cache"), **more}


def run_main(folder: Path, overrides: Sequence[str], timeout: float, **more: str) -> Command:
    """Run main.py in a new folder, and read what it left.

    Raises
    ------
    SystemExit
        If it fails; with its output.
    """
    folder.mkdir(parents=True)
    begun = time.time()
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *overrides],
        cwd=folder,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    ended = time.time()
    (folder / "stderr").write_text(done.stderr, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"main.py {' '.join(overrides)}:\n{done.stdout}\n{done.stderr[-4000:]}")
    (made,) = folder.glob("outputs/*/*")
    lines = (made / "events.jsonl").read_text(encoding="utf-8").splitlines()
    log = next(made.glob("*.log")).read_text(encoding="utf-8")
    told = re.search(r"\[([-\d]+ [\d:]+),(\d+)\].* rank\(s\) by ", log)
    assert told is not None, log
    ready = datetime.fromisoformat(told[1]).timestamp() + int(told[2]) / 1000
    return Command(
        begun,
        ended,
        (made / ".hydra" / "config.yaml").stat().st_mtime,
        ready,
        [Event(**json.loads(line)) for line in lines],
    )


def shallow_water(nsteps: int) -> list[str]:
    """Overrides of the embedded default."""
    return [f"parameters.nsteps={nsteps}"]


def fcn_and_climatenet(home: Path, nsteps: int) -> list[str]:
    """Overrides of FourCastNet, then ClimateNet, with seeded weights made in a folder."""
    if not home.exists():
        home.mkdir(parents=True)
        command: list[Any] = [sys.executable, "-c", _MAKE, home, TIME]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=500)
    return [
        "--config-name=diagnostic",
        f"prognostic.package={home / 'fcn'}",
        "diagnostic=climatenet",
        f"diagnostic.climatenet.package={home / 'climatenet'}",
        "data=file",
        f"data.path={home / 'fields.nc'}",
        f"parameters.time={TIME}",
        f"parameters.nsteps={nsteps}",
        "runtime.start_timeout=400",
    ]
