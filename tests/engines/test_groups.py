"""Models over several ranks on Ray: a replica is a placement group, and one worker to the farm."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from testing import application
from testing.preloaded import run_main
from testing.processes import marked
from tests.engines.conftest import Nodes, OnRay
from tests.faults.conftest import STEPS

pytestmark = [pytest.mark.timeout(500), pytest.mark.slow]
TOGETHER = (
    "diagnostic.faulty._target_=testing.faulty.FaultyTogether",
    "+diagnostic.faulty.ranks=2",
    "+diagnostic.faulty.seconds=0.5",
)


def follower(cluster: Nodes) -> psutil.Process:
    """Process of the rank that does what the first one of its group does."""
    processes = [psutil.Process(pid) for pid in marked(cluster.marker)]
    (found,) = (one for one in processes if "ray::Follower" in " ".join(one.cmdline()))
    return found


def test_ray_gives_the_bytes_of_other_ranks(on_cluster: OnRay) -> None:
    words = (*TOGETHER, "prognostic.ranks=2")
    launched = on_cluster.words("", *words, "runtime.nproc=4")
    done = run_main(*launched, folder=on_cluster.folder)
    assert done.status == 0, done.err
    expected = on_cluster.values()
    done = on_cluster.run("", *words, "runtime.workers=1", "output.mode=overwrite")
    assert done.status == 0, done.err
    assert "4 rank(s) by ray" in done.out + done.err
    np.testing.assert_array_equal(on_cluster.values(), expected)


def test_a_replica_that_loses_a_rank_is_started_again(
    on_cluster: OnRay, shared: Nodes, undisturbed: np.ndarray
) -> None:
    words = (*TOGETHER, "runtime.workers=1", "runtime.liveness_timeout=5")
    run = on_cluster.begin("24: once stop", *words, "runtime.max_attempts=20")
    on_cluster.wait_for_a_step(run)
    follower(shared).kill()
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, out + err
    assert "rank 2 of its group was lost" in out + err
    assert "no sign of life for 5 s" in out + err
    assert on_cluster.complete() == list(range(STEPS + 1))
    np.testing.assert_array_equal(on_cluster.values(), undisturbed)


def test_an_error_of_one_rank_is_that_of_the_model(on_cluster: OnRay) -> None:
    words = (*TOGETHER, "diagnostic.faulty.ranks=3", "runtime.workers=1")
    done = on_cluster.run("12: once raise", *words)
    assert done.status == 1
    # Other lines are those of the actors.
    (error,) = re.findall(r"^distinf: error: (.*faulty.*)$", done.err, re.M)
    assert "on rank 1" in error
    assert "ArithmeticError: negative humidity" in error


def test_a_stopped_rank_of_the_prognostic_ends_the_run(on_cluster: OnRay, shared: Nodes) -> None:
    words = ("+diagnostic.faulty.seconds=1", "runtime.workers=1", "runtime.liveness_timeout=5")
    run = on_cluster.begin("", "prognostic.ranks=2", *words, "parameters.nsteps=60")
    on_cluster.wait_for_a_step(run)
    began = time.monotonic()
    follower(shared).send_signal(signal.SIGSTOP)
    out, err = run.communicate(timeout=90)
    assert time.monotonic() - began < 60
    assert run.returncode == 1, out + err
    assert "rank 1, which runs the " in err
    assert "Traceback" not in err
    assert on_cluster.complete()


def test_an_error_of_one_rank_while_it_starts_ends_the_run(on_cluster: OnRay) -> None:
    script = Path(__file__).parent / "apps" / "alone.py"
    command = [sys.executable, str(script), on_cluster.address]
    done = application.run(command, on_cluster.folder, 120, **on_cluster.environment)
    assert done.status == 1
    assert "TaskError: constructing Alone failed" in done.err
    assert "on rank 2: FileNotFoundError: no weights here" in done.err
