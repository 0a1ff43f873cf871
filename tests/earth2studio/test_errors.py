"""Wrong settings end the run at once, with one error for all ranks that says what to do."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from testing import application
from tests.earth2studio.conftest import NO_PROXY, Run

pytestmark = pytest.mark.timeout(500)


def network() -> bool:
    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        return False
    return True


without_network = pytest.mark.skipif(network(), reason="this machine has a network")


def one_error(done: application.Outcome) -> str:
    assert done.status == 1, done.out + done.err
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("distinf: ")]
    assert len(lines) == 1, done.err
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["++prognostic.pakage=x"], "prognostic.pakage does not exist. Did you mean prognostic.p"),
        (["prognostic.package=/nowhere"], "prognostic.package=/nowhere: the folder /nowhere does"),
        (["prognostic.model=earth2studio.models.px.FNC"], "Did you mean earth2studio.models.px.F"),
    ],
)
def test_a_wrong_setting_is_answered_before_anything_loads(
    overrides: list[str], expected: str, run_at_once: Run
) -> None:
    start = time.monotonic()
    assert expected in one_error(run_at_once(*overrides))
    assert time.monotonic() - start < 10


@pytest.mark.slow
def test_a_package_without_the_models_files_is_named_once(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    error = one_error(
        run(
            *("prognostic=persistence", "prognostic.variable=[tcwv,u850,v850,msl]"),
            *("data=random", "diagnostic=climatenet"),
            *(f"diagnostic.climatenet.package={folder}", "runtime.nproc=3"),
        )
    )
    assert f"diagnostic.climatenet: package {folder} is not a package of ClimateNet" in error


@pytest.mark.slow
def test_a_time_that_the_file_does_not_have_lists_those_it_has(
    made: dict[str, Path], run: Run
) -> None:
    error = one_error(
        run(
            *("prognostic=persistence", "diagnostic=identity", "data=file", "runtime.nproc=2"),
            *(f"data.path={made['fields']}", "parameters.time=2020-01-01"),
        )
    )
    assert "does not have the times 2020-01-01" in error
    assert "it has 2023-06-01" in error


@pytest.mark.slow
@without_network
def test_a_default_package_out_of_reach_says_what_to_do(run_at_once: Run) -> None:
    start = time.monotonic()
    error = one_error(run_at_once("runtime.nproc=2"))
    assert time.monotonic() - start < 60
    assert "package hf://nvidia/fourcastnet1" in error
    assert "could not be fetched" in error
    assert "package=/path" in error


@pytest.mark.slow
@without_network
def test_a_data_source_out_of_reach_says_what_to_do(run: Run) -> None:
    error = one_error(run("prognostic=persistence", "diagnostic=identity", "runtime.nproc=2"))
    assert "GFS cannot be reached" in error
    assert "data=file data.path=" in error


@pytest.mark.slow
@without_network
def test_under_torchrun_one_rank_speaks(tmp_path: Path) -> None:
    command = application.torchrun_main(3, "--config-name=diagnostic.yaml")
    done = application.run(command, tmp_path, 200, EARTH2STUDIO_CACHE=str(tmp_path), **NO_PROXY)
    assert done.status != 0
    assert done.err.count("distinf: error") == 1
    assert done.err.count("could not be fetched") == 1
