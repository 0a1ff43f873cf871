"""An application of the proposed interface runs with its import changed, and ends when it fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from testing import application

pytestmark = pytest.mark.timeout(300)
PROPOSAL = str(Path(__file__).parent / "proposal.py")


def proposal(folder: Path, nproc: int, *arguments: str) -> application.Outcome:
    command = [sys.executable, PROPOSAL, *arguments]
    if nproc > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1"]
        command[1:1] = [*launcher, f"--nproc-per-node={nproc}"]
    return application.run(command, folder, deadline=200)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 3])
def test_it_runs_with_its_import_changed(nproc: int, tmp_path: Path) -> None:
    done = proposal(tmp_path, nproc)
    assert done.status == 0, done.err
    assert f"written 8 of 8 by {nproc} ranks" in done.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("model", "not a number at 24 h"),
        ("constructor", "no weights here"),
        ("writer", "no space left on device"),
    ],
)
@pytest.mark.parametrize("nproc", [1, 2])
def test_it_ends_with_the_error(fault: str, expected: str, nproc: int, tmp_path: Path) -> None:
    done = proposal(tmp_path, nproc, fault)
    assert done.status != 0
    assert expected in done.err
    assert "written" not in done.out
