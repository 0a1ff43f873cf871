"""Hydra's --multirun: one run after the other in the same processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from tests.application import SMALL, python_main, run, torchrun_main

pytestmark = pytest.mark.timeout(500)


def sizes(paths: list[Path]) -> list[int]:
    found = []
    for path in sorted(paths):
        with xr.open_zarr(path) as there:
            assert there.wind_decomposition_complete.values.all()
            found.append(there.sizes["lead_time"])
    return found


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    command = python_main("--multirun", *SMALL, "runtime.nproc=2", "parameters.nsteps=1,2")
    outcome = run(command, tmp_path)
    assert outcome.status == 0, outcome.err
    assert sizes(list(tmp_path.glob("multirun/*/*/*/shallow_water.zarr"))) == [2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["multirun"]


def test_it_works_under_torchrun_with_paths_made_of_other_keys(tmp_path: Path) -> None:
    path = "parameters.output_path=steps_${parameters.nsteps}.zarr"
    command = torchrun_main(2, "--multirun", *SMALL, path, "parameters.nsteps=1,2")
    outcome = run(command, tmp_path)
    assert outcome.status == 0, outcome.err
    assert sizes(list(tmp_path.glob("steps_*.zarr"))) == [2, 3]
    assert not (tmp_path / "multirun.yaml").exists()
