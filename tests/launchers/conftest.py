"""Launch a small program, or main.py, with real launchers, and read what the ranks print."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.application import ROOT, Outcome, finish, start
from testing.preloaded import run_main
from testing.programs import PACKAGES, SLURM, missing
from testing.slurm import cluster
from tests.ranks.conftest import leaving_nothing

RANKS = Path(__file__).parent / "apps" / "ranks.py"
DEADLINE = 200.0  # of what takes seconds where nothing else runs
STORE = "shallow_water.zarr"
TINY = (
    "recipe=diagnostic",  # the same store, and no picture of it
    "prognostic.nlat=32",
    "prognostic.nlon=64",
    "parameters.nsteps=1",
)
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe")


def ranks(*options: str) -> list[str]:
    return [sys.executable, str(RANKS), *options]


def main_py(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), "--config-name=shallow_water", *overrides]


def shell(*commands: list[str]) -> str:
    return "\n".join(["#!/bin/bash", *map(shlex.join, commands)]) + "\n"


def reported(outcome: Outcome) -> list[list[dict[str, Any]]]:
    """What the ranks of each session print about themselves."""
    assert outcome.status == 0, f"{outcome.out}\n{outcome.err}"
    return [json.loads(line) for line in outcome.out.splitlines() if line.startswith("[{")]


def places(session: list[dict[str, Any]]) -> list[tuple[int, int, int, int]]:
    names = ("rank", "world_size", "local_rank", "local_world_size")
    return [tuple(rank[name] for name in names) for rank in session]


def chunks(store: Path) -> dict[str, bytes]:
    """The bytes of every chunk of a store."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("c/**/*")
        if path.is_file()
    }


def skip_without(*words: str) -> None:
    """Skip the test if a program among the words of a command is not installed."""
    if lacking := missing(*(word for word in words if word in PACKAGES)):
        pytest.skip(lacking)


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """Environment in which srun and sbatch reach a cluster of two nodes."""
    skip_without(*SLURM)
    with cluster() as environment:
        yield environment


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Outcome]:
    """Run command lines side by side to their ends; none of their processes may stay."""

    def launch(*commands: list[str], deadline: float = DEADLINE, **more: str) -> Any:
        skip_without(*(word for command in commands for word in command))
        with leaving_nothing() as environment:
            environment |= more
            started = [start(command, tmp_path, **environment) for command in commands]
            ended = [finish(process, deadline) for process in started]
        return ended if len(ended) > 1 else ended[0]

    return launch


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The chunks of a run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    outcome = run_main(
        "--config-name=shallow_water", *TINY, "runtime.nproc=1", folder=folder, deadline=DEADLINE
    )
    assert outcome.status == 0, outcome.err
    found = chunks(folder / STORE)
    assert found
    return found


@pytest.fixture
def sbatch(slurm: dict[str, str], tmp_path: Path) -> Callable[..., Outcome]:
    """Submit a script, wait for its end, and return what it printed."""

    def sbatch(script: str, *options: str) -> Outcome:
        skip_without(*script.split())
        (tmp_path / "script").write_text(script)
        with leaving_nothing() as environment:
            environment |= slurm
            command = ["sbatch", "--parsable", "--output=job.txt", *options, "script"]
            submitted = finish(start(command, tmp_path, **environment), 60.0)
            assert submitted.status == 0, submitted.err
            status = ended(submitted.out.strip(), environment)
        text = (tmp_path / "job.txt").read_text()
        return Outcome(status, text, text)

    return sbatch


def ended(job: str, environment: dict[str, str]) -> int:
    """Wait for a job's end and return its exit status; sbatch's own --wait looks rarely."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        shown = finish(start(["scontrol", "show", "job", job], Path.cwd(), **environment), 60.0).out
        state = re.search(r"JobState=(\w+)", shown)
        if state and state[1] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            code = re.search(r"ExitCode=(\d+):(\d+)", shown)
            assert code, shown
            return int(code[1]) or int(code[2])
        time.sleep(0.2)
    raise AssertionError(f"job {job} has not ended after {DEADLINE:g} s")


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return str(sock.getsockname()[1])


assert os.environ["OMP_NUM_THREADS"] == "1"
