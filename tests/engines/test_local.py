"""Runs on one node, most on a Ray cluster of their own: same bytes, and nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import time

import numpy as np
import psutil
import pytest

from testing import application
from testing.processes import listening
from tests.engines.conftest import Nodes, OnRay
from tests.faults.conftest import STEPS

pytestmark = pytest.mark.timeout(500)
ALL = list(range(STEPS + 1))
SLOW = pytest.mark.slow


@SLOW
def test_the_bytes_are_those_of_one_process(on_ray: OnRay, undisturbed: np.ndarray) -> None:
    if not shutil.which("uv"):
        pytest.skip("uv is not installed")
    main = application.python_main(*on_ray.words("", *on_ray.engine, "runtime.workers=2"))
    run = on_ray.start(["uv", "run", "--no-project", *main])
    on_ray.wait_for_a_step(run)
    ours = on_ray.marked()
    assert [name_of(pid) for pid in ours].count("uv") == 1  # workers use the same environment
    addresses = {address for pid in ours for address in listening(pid)}
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, out + err
    assert "3 rank(s) by ray, carrier ray" in out
    assert on_ray.complete() == ALL
    np.testing.assert_array_equal(on_ray.values(), undisturbed)
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}


@SLOW
def test_a_cluster_that_does_not_start_ends_the_run(on_ray: OnRay) -> None:
    run = on_ray.begin("", "runtime.workers=1", "runtime.start_timeout=15")
    while not (servers := [pid for pid in on_ray.marked() if name_of(pid) == "gcs_server"]):
        assert run.poll() is None
    os.kill(servers[0], signal.SIGSTOP)
    out, err = run.communicate(timeout=90)
    assert run.returncode == 1, out + err
    assert "Ray has not started in 15 s (runtime.start_timeout)" in err
    assert "Traceback" not in err


@SLOW
def test_every_worker_is_lost_once_and_replaced(on_cluster: OnRay, undisturbed: np.ndarray) -> None:
    done = on_cluster.run(
        "6: once kill, 12: once stop, 18: once exit, 24: once kill, 30: once sleep",
        *("runtime.workers=2", "runtime.liveness_timeout=5", "+diagnostic.faulty.seconds=0.2"),
        "runtime.call_timeout=15",
        "runtime.max_attempts=20",  # a busy machine loses more workers by these short deadlines
        "runtime.on_error=skip",
        deadline=300,
    )
    assert "Ray reports ActorUnavailableError" in done.out + done.err
    assert "has given no sign of life for 5 s" in done.out + done.err
    assert "no answer in 15 s" in done.out + done.err
    # The model that exits its process has raised an error; its task is left out.
    assert on_cluster.complete() == [0, 1, 2, 4, 5], done.out + done.err
    values = on_cluster.values()[:, on_cluster.complete()]
    np.testing.assert_array_equal(values, undisturbed[:, on_cluster.complete()])


@SLOW
def test_ray_ends_a_worker_that_takes_all_memory(on_ray: OnRay, undisturbed: np.ndarray) -> None:
    from ray._private import utils

    limit = (utils.get_used_memory() + 4 * 2**30) / utils.get_system_memory()
    on_ray.environment["RAY_memory_usage_threshold"] = f"{limit:.3f}"
    done = on_ray.run("12: once grow", "runtime.workers=1")
    assert done.status == 0, done.err
    assert "rank 1 was lost" in done.out + done.err
    assert "emory" in done.out + done.err
    assert on_ray.complete() == ALL
    np.testing.assert_array_equal(on_ray.values(), undisturbed)


@SLOW
def test_a_killed_driver_leaves_nobody_and_is_resumed(
    on_ray: OnRay, shared: Nodes, undisturbed: np.ndarray
) -> None:
    words = ("runtime.workers=2", "output.mode=resume", "output.restart_every=1")
    run = on_ray.begin("18: once sleep", *words)
    on_ray.wait_for_a_step(run)
    ranks = on_ray.workers()
    assert len(ranks) == 2
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert psutil.wait_procs(ranks, timeout=30)[1] == []
    (on_ray.folder / "fault 18").touch()
    on_ray.address = shared.address
    done = on_ray.run("18: once sleep", *words)
    assert done.status == 0, done.err
    assert on_ray.complete() == ALL
    np.testing.assert_array_equal(on_ray.values(), undisturbed)


@SLOW
def test_a_raylet_that_is_stopped_ends_nothing(on_ray: OnRay, undisturbed: np.ndarray) -> None:
    on_ray.environment["RAY_health_check_period_ms"] = "1000"
    on_ray.environment["RAY_health_check_timeout_ms"] = "3000"
    run = on_ray.begin("24: once sleep", "runtime.workers=1", "runtime.call_timeout=5")
    on_ray.wait_for_a_step(run)
    (raylet,) = (one for one in map(psutil.Process, on_ray.marked()) if one.name() == "raylet")
    raylet.send_signal(signal.SIGSTOP)
    out, err = run.communicate(timeout=250)
    assert run.returncode == 0, out + err
    assert "rank 1 does not come back" in out + err
    assert on_ray.complete() == ALL
    np.testing.assert_array_equal(on_ray.values(), undisturbed)


@SLOW
def test_an_error_of_a_model_keeps_its_traceback_and_its_host(on_cluster: OnRay) -> None:
    done = on_cluster.run("12: raise", "runtime.workers=1")
    assert done.status == 1
    assert "Faulty.forward failed for faulty 2000-01-01T00:00 +12 h on rank 1 (" in done.err
    assert "ArithmeticError: negative humidity" in done.err
    assert "Traceback on rank 1" in done.err
    assert "in _do" in done.err


@SLOW
def test_a_constructor_that_raises_ends_the_run(on_cluster: OnRay) -> None:
    done = on_cluster.run("", "runtime.workers=2", "+diagnostic.faulty.constructor=raise")
    assert done.status == 1
    assert "RuntimeError: no weights here" in done.err


@SLOW
def test_ctrl_c_ends_it_as_on_ranks(on_cluster: OnRay) -> None:
    run = on_cluster.begin("18: sleep", "runtime.workers=1")
    on_cluster.wait_for_a_step(run)
    began = time.monotonic()
    os.kill(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert run.returncode == 130
    assert "output.mode=resume" in err


def name_of(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return ""
