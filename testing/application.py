"""Run main.py as a user does, with a deadline, in a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
# A coarse grid: half a second for each step.
SMALL = (
    "report=none",
    "prognostic.nlat=64",
    "prognostic.nlon=128",
    "+prognostic.dt=600",
    "parameters.nsteps=5",
)


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# tests/conftest.py sets it for the tests' own process; it would hide who takes all cores.
_NOT_A_SHELL_S = (*_LAUNCHER, "OMP_NUM_THREADS")


def environment(**more: str) -> dict[str, str]:
    """Environment of a user's shell, without the variables of a launcher."""
    clean = {key: value for key, value in os.environ.items() if key not in _NOT_A_SHELL_S}
    return {**clean, **more}


def start(command: list[str], folder: Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], deadline: float) -> Outcome:
    """Wait for the end; kill the whole group at the deadline."""
    try:
        out, err = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"not ended after {deadline} s:\n{out}\n{err}") from None
    return Outcome(process.returncode, out, err)


def python_main(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), *overrides]


def torchrun_main(nproc: int, *overrides: str) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"),
        *(f"--nproc-per-node={nproc}", str(ROOT / "main.py"), *overrides),
    ]


def run(command: list[str], folder: Path, deadline: float = 400.0, **more: str) -> Outcome:
    return finish(start(command, folder, **more), deadline)
