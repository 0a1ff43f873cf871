"""Under each launcher a training makes the same package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from testing.application import Outcome, python_main
from testing.preloaded import run_main
from tests.launchers.conftest import DEADLINE, MPIRUN
from tests.training import stores

pytestmark = pytest.mark.slow
WORDS = (*stores.SMALL, "training.epochs=2")


def package(folder: Path) -> list[bytes]:
    return [(folder / "trained" / name).read_bytes() for name in ("network.mdlus", "package.json")]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The package of two ranks that distinf has started."""
    folder = tmp_path_factory.mktemp("own")
    stores.make(folder)
    done = run_main(*WORDS, "runtime.nproc=2", folder=folder, deadline=DEADLINE)
    assert done.status == 0, done.err
    return package(folder)


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_two_ranks_train(
    launcher: str,
    launch: Callable[..., Outcome],
    own: list[bytes],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    stores.make(tmp_path)
    words, more = [*MPIRUN, "-np", "2"], {}
    if launcher == "srun":
        words, more = ["srun", "--nodes=2", "--ntasks=2"], request.getfixturevalue("slurm")
    done = launch([*words, *python_main(*WORDS, "runtime.expect_ranks=2")], **more)
    assert done.status == 0, f"{done.out}\n{done.err}"
    assert done.out.count("Trained on ") == 1
    assert package(tmp_path) == own
