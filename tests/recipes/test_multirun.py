"""Hydra's --multirun: one run after the other in the same processes."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
import xarray as xr
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from distinf.errors import ConfigError
from recipes.shared.output_path import (
    check_own,
    netcdf_path,
    output_path,
    own_path,
    repeated_places,
)
from testing.application import ROOT, SMALL, run, torchrun_main
from testing.preloaded import run_main

pytestmark = pytest.mark.timeout(500)


def sizes(paths: list[Path]) -> list[int]:
    found = []
    for path in sorted(paths):
        with xr.open_zarr(path) as there:
            assert there.wind_decomposition_complete.values.all()
            found.append(there.sizes["lead_time"])
    return found


@pytest.mark.slow
def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    asked = (*SMALL, "runtime.nproc=2", "parameters.nsteps=1,2")
    outcome = run_main("--multirun", *asked, folder=tmp_path)
    assert outcome.status == 0, outcome.err
    assert sizes(list(tmp_path.glob("multirun/*/*/*/shallow_water.zarr"))) == [2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["multirun"]


@pytest.mark.slow
def test_it_works_under_torchrun_with_paths_made_of_other_keys(tmp_path: Path) -> None:
    path = "parameters.output_path=steps_${parameters.nsteps}.zarr"
    command = torchrun_main(2, "--multirun", *SMALL, path, "parameters.nsteps=1,2")
    outcome = run(command, tmp_path)
    assert outcome.status == 0, outcome.err
    assert sizes(list(tmp_path.glob("steps_*.zarr"))) == [2, 3]
    assert not (tmp_path / "multirun.yaml").exists()


@pytest.mark.parametrize("key", ["action=print", "exclusive=false"])
def test_any_key_of_slurm_gives_a_script_also_its_default(key: str, tmp_path: Path) -> None:
    outcome = run_main(f"slurm.{key}", folder=tmp_path, deadline=120)
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("#!/bin/bash\n#SBATCH")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_run_of_a_batch_script_logs_and_has_a_folder(tmp_path: Path) -> None:
    outcome = run_main(*SMALL, "runtime.nproc=1", "slurm.action=none", folder=tmp_path)
    assert outcome.status == 0, outcome.err
    assert "[distinf][INFO] - 1 rank(s)" in outcome.out
    (folder,) = tmp_path.glob("outputs/*/*")
    assert {".hydra", "events.jsonl"} <= {path.name for path in folder.iterdir()}


def test_batch_scripts_of_a_sweep_write_where_the_sweep_does(tmp_path: Path) -> None:
    folder = tmp_path / "a b, it's"
    folder.mkdir()
    asked = ("slurm.nodes=1", "slurm.action=save", "output.netcdf=f.nc", "parameters.nsteps=1,2")
    outcome = run_main("--multirun", *asked, folder=folder, deadline=120)
    assert outcome.status == 0, outcome.err
    scripts = sorted(folder.glob("multirun/*/*/*/distinf.sbatch"))
    assert len(scripts) == 2
    for nsteps, script in enumerate(scripts, 1):
        (line,) = [line for line in script.read_text().splitlines() if line.startswith("exec")]
        words = [word for word in shlex.split(line) if "=" in word and not word.startswith("--")]
        with hydra.initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
            cfg = hydra.compose("shallow_water", words, return_hydra_config=True)
        assert cfg.parameters.nsteps == nsteps
        assert cfg.parameters.output_path == str(script.parent / "shallow_water.zarr")
        assert cfg.output.netcdf == str(script.parent / "f.nc")
        assert cfg.hydra.run.dir == str(script.parent)
        assert cfg.hydra.mode == RunMode.RUN
        assert cfg.slurm.action == "none"


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Callable[..., DictConfig]]:
    """Make one run of a sweep current in this process, and return its config."""
    runs = itertools.count()

    def compose(*overrides: str) -> DictConfig:
        number = next(runs)
        folder = tmp_path / "multirun" / str(number)
        own = (f"hydra.runtime.output_dir={folder}", f"hydra.sweep.dir={tmp_path}/multirun")
        alone = ("hydra.mode=MULTIRUN", f"++hydra.job.num={number}", "hydra.runtime.cwd=.")
        with hydra.initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
            cfg = hydra.compose(
                "shallow_water", [*overrides, *own, *alone], return_hydra_config=True
            )
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    yield compose
    HydraConfig.instance().cfg = None


def test_a_relative_path_is_the_run_s_own_and_one_made_of_keys_stays(
    tmp_path: Path, sweep: Callable[..., DictConfig]
) -> None:
    cfg = sweep("output.netcdf=f.nc", "parameters.output_path=n_${parameters.nsteps}.zarr")
    assert netcdf_path(cfg) == str(tmp_path / "multirun/0/f.nc")
    assert output_path(cfg) == "n_24.zarr"
    assert own_path("distinf.sbatch") == str(tmp_path / "multirun/0/distinf.sbatch")
    assert netcdf_path(sweep()) is None
    cfg = sweep("output.netcdf=n_${parameters.nsteps}.nc")
    assert netcdf_path(cfg) == "n_24.nc"


@pytest.mark.parametrize("key", ["parameters.output_path", "output.netcdf"])
@pytest.mark.parametrize("mode", ["create", "overwrite"])
def test_no_run_of_a_sweep_writes_over_another_one(
    tmp_path: Path, sweep: Callable[..., DictConfig], key: str, mode: str
) -> None:
    given = (f"{key}={tmp_path}/x", f"output.mode={mode}")
    first = sweep(*given)
    for _ in range(2):
        check_own(first)
    with pytest.raises(ConfigError, match=rf"{key}=\S+ is written by run 0 of this sweep, too"):
        check_own(sweep(*given))
    check_own(sweep(f"{key}={tmp_path}/x", "output.mode=resume"))
    check_own(sweep(f"{key}={tmp_path}/y"))


@pytest.mark.parametrize("name", ["a b", "it's", "a\\", "a\\'b", "x=1,2", "{a: [b]}", "#c", ""])
def test_any_folder_stands_in_the_overrides(
    tmp_path: Path, sweep: Callable[..., DictConfig], name: str
) -> None:
    cfg = sweep()
    cfg.parameters.output_path = f"{name}/x.zarr"
    own = [word for word in repeated_places(cfg) if "output_path" in word]
    with hydra.initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        again = hydra.compose("shallow_water", own)
    assert again.parameters.output_path == output_path(cfg)
