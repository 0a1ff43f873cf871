"""Run a small application as a user does, and read the JSON lines that it prints."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testing import application
from testing.processes import marked

APPS = Path(__file__).parent / "apps"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nnodes=1")
DEADLINE = 300.0  # of runs that take seconds where nothing else runs


class Run(application.Outcome):
    """How an application ended, and what it printed."""

    @property
    def reported(self) -> dict[str, Any]:
        """The ``[name, value]`` lines of stdout."""
        lines = [json.loads(line) for line in self.out.splitlines() if line.startswith("[")]
        assert len({name for name, _ in lines}) == len(lines), "reported twice"
        return dict(lines)

    def __getitem__(self, name: str) -> Any:
        assert name in self.reported, f"{name} is missing\n{self.out}\n{self.err}"
        return self.reported[name]


@contextmanager
def leaving_nothing(patience: float = 10.0) -> Iterator[dict[str, str]]:
    """Environment for a run, all of whose processes must have ended soon after the block."""
    marker = uuid.uuid4().hex
    try:
        yield {"DISTINF_TEST_RUN": marker, "TORCH_CPP_LOG_LEVEL": "ERROR"}
        deadline = time.monotonic() + patience
        while (left := marked(marker)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, f"still alive after {patience} s: {left}"
    finally:
        for pid in marked(marker):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """The command line of an application; ``torchrun``: ranks that torchrun starts."""

    def make(app: str, *args: object, torchrun: int = 0) -> list[str]:
        launcher = (*TORCHRUN, f"--nproc-per-node={torchrun}") if torchrun else ()
        return [sys.executable, *launcher, str(APPS / app), *map(str, args)]

    return make


@pytest.fixture(scope="session")
def run(
    command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Run]:
    """Run an application to its end, in a folder of its own, with a deadline."""

    def run(app: str, *args: object, torchrun: int = 0, deadline: float = DEADLINE) -> Run:
        folder = tmp_path_factory.mktemp("run")
        line = command(app, *args, torchrun=torchrun)
        with leaving_nothing() as environment:
            environment["PYTHONPATH"] = f"{application.ROOT / 'src'}{os.pathsep}{application.ROOT}"
            outcome = application.finish(application.start(line, folder, **environment), deadline)
        return Run(outcome.status, outcome.out, outcome.err)

    return run
