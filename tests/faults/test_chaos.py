"""A short run of benchmarks/chaos.py: random faults on random runs until each is complete."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from testing import application


@pytest.mark.slow
@pytest.mark.timeout(1900)
def test_random_faults_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    told = tmp_path / "counts.json"
    command = [sys.executable, "-m", "benchmarks.chaos", "--runs=1", "--seed=4", "--no-slurm"]
    done = subprocess.run(
        [*command, f"--json={told}"],
        cwd=application.ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(told.read_text())
    assert counts.pop("runs") == 1
    assert sum(counts.pop("faults").values()) >= 6
    assert counts.pop("attempts") >= 2
    assert set(counts.values()) == {0}, counts
