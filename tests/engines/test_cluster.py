"""Runs on a Ray cluster that is there already, of one node or of several that come and go."""

from __future__ import annotations

import time

import numpy as np
import psutil
import pytest

from tests.engines.conftest import Nodes, OnRay
from tests.faults.conftest import STEPS

pytestmark = [pytest.mark.timeout(500), pytest.mark.slow]
ALL = list(range(STEPS + 1))


def test_a_node_is_killed_and_another_one_added(
    on_ray: OnRay, nodes: Nodes, undisturbed: np.ndarray
) -> None:
    first = nodes.ask("add 1")
    run = on_ray.begin("", "runtime.workers=[1,2]", "+diagnostic.faulty.seconds=0.5")
    on_ray.wait_for_a_step(run)
    nodes.ask(f"kill {first}")
    nodes.ask("add 1")
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, out + err
    assert "was lost" in out + err
    assert on_ray.complete() == ALL
    np.testing.assert_array_equal(on_ray.values(), undisturbed)


def test_without_room_one_line_says_what_is_asked_and_there(on_cluster: OnRay) -> None:
    words = ("runtime.workers=1", "runtime.resources={CPU: 64}", "runtime.wait_for_workers=22")
    began = time.monotonic()
    done = on_cluster.run("", *words, deadline=100)
    assert time.monotonic() - began < 90
    assert done.status == 1
    line = "1 of 1 workers are not there yet: each asks Ray for CPU 64; the cluster has CPU 3"
    assert (done.out + done.err).count(line) == 1
    assert "runtime.wait_for_workers" in done.err


def test_two_runs_share_a_cluster(on_cluster: OnRay, undisturbed: np.ndarray) -> None:
    other = on_cluster.begin("", "runtime.workers=1", "parameters.output_path=other.zarr")
    done = on_cluster.run("", "runtime.workers=1")
    out, err = other.communicate(timeout=200)
    assert (done.status, other.returncode) == (0, 0), done.err + out + err
    np.testing.assert_array_equal(on_cluster.values(), undisturbed)
    (on_cluster.folder / "out.zarr").rename(on_cluster.folder / "first.zarr")
    (on_cluster.folder / "other.zarr").rename(on_cluster.folder / "out.zarr")
    np.testing.assert_array_equal(on_cluster.values(), undisturbed)


def test_a_killed_driver_leaves_no_actor(on_ray: OnRay, nodes: Nodes) -> None:
    nodes.ask("add 1")
    run = on_ray.begin("18: sleep", "runtime.workers=1")
    on_ray.wait_for_a_step(run)
    actors = on_ray.workers()
    assert len(actors) == 1
    run.kill()
    run.communicate()
    assert psutil.wait_procs(actors, timeout=30)[1] == []


def test_a_cluster_of_another_ray_is_refused_in_one_line(on_ray: OnRay, nodes: Nodes) -> None:
    nodes.ask("versions 2.40.0 3.10.4")
    done = on_ray.run("", "runtime.workers=1", deadline=60)
    assert done.status == 1
    (line,) = [line for line in done.err.splitlines() if "Version mismatch" in line]
    assert f"runtime.address={nodes.address}: Version mismatch" in line
    assert "Ray: 2.40.0" in line
    assert "Python: 3.10.4" in line
    assert "Traceback" not in done.err
