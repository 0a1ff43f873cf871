"""Runs on Ray: clusters of their own, and clusters of several nodes on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from testing import application
from testing.processes import marked
from tests.faults.conftest import Faults, undisturbed
from tests.ranks.conftest import leaving_nothing

__all__ = ["undisturbed"]  # a fixture


class OnRay(Faults):
    """Runs of main.py with a faulty diagnostic on Ray, by default on a cluster of their own."""

    address = "local"

    @property
    def engine(self) -> tuple[str, ...]:
        return "runtime.engine=ray", f"runtime.address={self.address}"

    def begin(self, faults: str, *overrides: str) -> subprocess.Popen[str]:
        return self.start(application.python_main(*self.words(faults, *self.engine, *overrides)))

    def run(self, faults: str, *overrides: str, deadline: float = 200) -> application.Outcome:
        return super().run(faults, *self.engine, *overrides, deadline=deadline)

    def marked(self) -> list[int]:
        """All processes of these runs."""
        return marked(self.environment["DISTINF_TEST_RUN"])

    def workers(self) -> list[psutil.Process]:
        """Processes of the actors."""
        processes = [psutil.Process(pid) for pid in self.marked()]
        return [one for one in processes if "RayWorker" in " ".join(one.cmdline())]


@pytest.fixture
def on_ray(tmp_path: Path) -> Iterator[OnRay]:
    pytest.importorskip("ray", reason="Ray is not installed")
    with leaving_nothing(30) as environment:  # promised for whatever happens
        yield OnRay(tmp_path, environment)


class Nodes:
    """A Ray cluster of several nodes (raylets) on this machine, in a process of its own.

    The first one has so many CPUs for workers.
    """

    def __init__(self, environment: dict[str, str], cpus: int) -> None:
        script = Path(__file__).parent / "apps" / "cluster.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            env=application.environment(**environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.marker = environment["DISTINF_TEST_RUN"]
        self.address = self.ask(f"head {cpus}")

    def ask(self, words: str) -> str:
        """Give one command to the cluster's process; return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("answer "):
                return line.removeprefix("answer ").strip()
        raise AssertionError(f"the cluster's process ended at: {words}")

    def close(self) -> None:
        try:
            self._process.communicate("end\n", timeout=60)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)


@pytest.fixture
def nodes(on_ray: OnRay) -> Iterator[Nodes]:
    """A cluster whose first node has no CPU for workers, and on which ``on_ray`` runs."""
    with contextlib.closing(Nodes(on_ray.environment, 0)) as cluster:
        on_ray.address = cluster.address
        yield cluster


@pytest.fixture(scope="package")  # `ray symmetric-run` refuses to start beside another cluster
def shared() -> Iterator[Nodes]:
    """A cluster for all tests of this folder that need none of their own."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with leaving_nothing(30) as environment, contextlib.closing(Nodes(environment, 3)) as cluster:
        yield cluster


@pytest.fixture
def on_cluster(on_ray: OnRay, shared: Nodes) -> OnRay:
    """Runs on a cluster that is there before and after them."""
    on_ray.address = shared.address
    return on_ray
