"""Under srun as the batch script calls it, a lost worker loses nothing, a lost driver ends all."""

import sys
import time

import pytest

from tests.launchers.conftest import RANKS

pytestmark = pytest.mark.slow

SRUN = ["srun", "--nodes=1", "--overlap", "--kill-on-bad-exit=0", "--wait=0"]


def test_a_killed_worker_and_a_killed_driver(launch, slurm):
    app = [sys.executable, str(RANKS.parent / "losses.py")]
    worker, driver = launch(
        [*SRUN, "--ntasks=3", *app, "worker"], [*SRUN, "--ntasks=2", *app, "driver"], **slurm
    )
    ended = time.time()
    assert "results 0 2 4 6 8 10" in worker.out, worker.err
    died = [line for line in driver.out.splitlines() if line.startswith("driver dies")]
    assert died, driver.err
    assert driver.status != 0
    assert ended - float(died[0].split()[-1]) < 60  # the other launch ended, too
