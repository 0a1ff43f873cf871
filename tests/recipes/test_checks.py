"""What a config alone tells to be wrong is refused before any model loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import xarray as xr
from omegaconf import DictConfig

from distinf import Output, Runtime
from distinf.errors import ConfigError
from recipes.shared.checks import check_models, check_paths, read_run
from recipes.shared.cli import explained, find_recipe
from testing.application import environment
from tests.training import stores

CFG = Path(__file__).parents[2] / "cfg"
SMALL = ("prognostic.nlat=33", "prognostic.nlon=64")


def check(cfg: DictConfig) -> None:
    read_run(cfg)
    check_models(cfg)


def composed(*overrides: str, config: str = "shallow_water") -> DictConfig:
    with hydra.initialize_config_dir(str(CFG), version_base="1.3"):
        return hydra.compose(config, [*overrides])


def refusal(*overrides: str, config: str = "shallow_water") -> str:
    cfg = composed(*overrides, config=config)
    with pytest.raises(ConfigError) as caught:
        check(cfg)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--config-name=diagnostic", "Valid keys of prognostic: _target_, model, package"),
        ("--config-name diagnostic", "Valid keys of prognostic: _target_, model, package"),
        ("-cn=diagnostic.yaml", "Valid keys of prognostic: _target_, model, package"),
        ("-cn diagnostic", "Valid keys of prognostic: _target_, model, package"),
        ("-cd folder -cn mine", "Could not override 'prognostic.modle'"),
    ],
)
def test_a_misspelt_key_of_the_config_that_is_named(
    given: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", *given.split(), "prognostic.modle=1"])
    with pytest.raises(SystemExit), explained():
        composed("prognostic.modle=1", config="diagnostic")
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lat", "lead_time", "variable", "tp_complete"])
def test_a_new_name_that_the_store_needs_itself(name: str) -> None:
    """Also where only loading the model would tell more."""
    said = refusal(f"diagnostic.precip_afno.rename={{tp: {name}}}", config="diagnostic")
    assert said.startswith(f"diagnostic.precip_afno.rename={{tp: {name}}}: ")
    assert said.endswith("choose another name")


def test_a_diagnostic_with_a_name_that_the_store_needs_itself() -> None:
    said = refusal("+diagnostic.wind_complete=${diagnostic.wind_decomposition}")
    assert said.startswith("diagnostic.wind_complete: names that end in _complete")
    said = refusal("+diagnostic.lon=${diagnostic.wind_decomposition}")
    assert said.startswith("diagnostic.lon: lon is a coordinate of the store")


@pytest.mark.parametrize(
    ("given", "right"), [("20230601", "2023-06-01"), ("2023060106", "2023-06-01T06:00")]
)
def test_a_date_without_hyphens(given: str, right: str) -> None:
    for override in (given, f"'{given}'", f"[{given}]"):
        assert f"{given}: not a time" in (said := refusal(f"parameters.time={override}"))
        assert f"write {right} (UTC)" in said
    period = f"{{start: {given}, end: 2024-01-01, interval: 1d}}"
    assert f"time.start={given}: not a time" in refusal(f"parameters.time={period}")


def test_a_forecast_beyond_the_last_date() -> None:
    said = refusal("parameters.time=2262-04-11", "parameters.nsteps=4", *SMALL)
    assert said.startswith("parameters.nsteps=4: ")
    assert said.endswith("at most 3 steps are possible")
    assert "parameters.nsteps=1000000000: " in refusal("parameters.nsteps=1000000000", *SMALL)


def test_sections_with_defaults_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = composed("~perturbation", "~output", "~runtime", "~slurm", *SMALL)
    run = read_run(cfg)
    assert (run.output, run.runtime) == (Output(), Runtime())
    assert run.perturbation == {}
    check_paths(cfg)
    check_models(cfg)


@pytest.mark.parametrize("name", ["prognostic", "diagnostic", "data", "parameters"])
def test_a_section_that_is_needed_and_left_out_is_named(name: str) -> None:
    said = refusal("data=random", f"~{name}", config="diagnostic")
    assert said.startswith((f"{name} ", f"{name}."))


def test_a_config_that_names_no_recipe() -> None:
    with pytest.raises(ConfigError, match=r"recipe=None does not exist; the recipes are .*fetch"):
        find_recipe(composed("~recipe"))


def test_winds_of_another_level_or_time_than_asked_for(tmp_path: Path) -> None:
    lat, lon = np.linspace(90, -90, 33), np.arange(64) * 5.625
    wind = xr.DataArray(
        np.zeros((2, 2, 33, 64)),
        {"time": np.array(["2000-01-01", "2000-01-02"], "M8[ns]"), "lat": lat, "lon": lon}
        | {"plev": ("plev", [85000.0, 50000.0], {"units": "Pa"})},
        ("time", "plev", "lat", "lon"),
        attrs={"units": "m s-1"},
    )
    xr.Dataset({"u": wind, "v": wind}).to_netcdf(tmp_path / "uv.nc")
    netcdf = ("data=netcdf", f"data.paths={tmp_path}/uv.nc", *SMALL)
    said = refusal(*netcdf, "data.level=50000")
    assert "data.level=50000 is 500 hPa" in said
    assert "prognostic.level=500" in said
    said = refusal(*netcdf, "data.level=85000", "parameters.time=2000-01-01T03:00")
    assert "no time 2000-01-01T03:00; its times are 2000-01-01, 2000-01-02: " in said
    said = refusal(
        *(*netcdf, "data.level=85000", "parameters.time=2000-01-01T03:00"),
        *("data.time_tolerance=3h", "diagnostic.wind_decomposition.levels=[500]"),
    )
    assert "u500" in said  # all but this was right


def test_one_key_names_the_level_of_all_variables() -> None:
    check(composed("prognostic.level=500", *SMALL))
    other = composed("diagnostic=wind_decomposition", config="diagnostic")
    assert other.diagnostic.wind_decomposition.levels == [850]


QUICKLY = """
import sys
import hydra
from distinf import DistinfError
from recipes.shared.cli import find_recipe
with hydra.initialize_config_dir(sys.argv[1], version_base="1.3"):
    cfg = hydra.compose(sys.argv[2], sys.argv[3:])
try:
    find_recipe(cfg).check(cfg)
except DistinfError as error:
    print(error)
sys.exit(bool({"torch", "xarray", "pandas"} & set(sys.modules)))
"""


@pytest.mark.parametrize("config", ["shallow_water", "diagnostic"])
@pytest.mark.parametrize("wrong", ["parameters.output_path=there.zarr", "output.mode=append"])
def test_a_wrong_setting_is_refused_before_what_is_large_is_imported(
    tmp_path: Path, config: str, wrong: str
) -> None:
    (tmp_path / "there.zarr").mkdir()
    (tmp_path / "there.zarr" / "precious").write_text("data")
    done = subprocess.run(
        [sys.executable, "-c", QUICKLY, str(CFG), config, wrong],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(CFG.parent)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert wrong in done.stdout, done.stderr
    assert done.returncode == 0


def test_states_that_are_read_have_no_drivers() -> None:
    said = refusal("runtime.drivers=2", "data.path=x.zarr", config="archive")
    assert said == "runtime.drivers: a run that reads its states has no prognostic to share"


def test_a_trained_package_that_does_not_fit(tmp_path: Path) -> None:
    """Its network is not there, so nothing has loaded it."""
    folder = tmp_path / "package"
    folder.mkdir()
    trained = ("diagnostic=trained", f"diagnostic.trained.package={folder}")
    assert refusal(*trained, *SMALL).startswith(
        f"diagnostic.trained: package {folder} is not a package of Trained"
    )
    scales = {name: (0.0, 1.0) for name in ("u850", "ke")}
    named = {"version": 1, "inputs": scales, "targets": {"w": (0.0, 1.0)}, "attributes": {}}
    named |= {"lat": stores.LAT.tolist(), "lon": stores.LON.tolist()}
    (folder / "package.json").write_text(json.dumps(named))
    said = refusal(*trained, *SMALL)
    assert said.startswith("diagnostic.trained needs the variables ke, which the prognostic does")
    stores.dataset().isel(lat=slice(0, 5)).to_zarr(tmp_path / "north.zarr")
    said = refusal(*trained, f"data.path={tmp_path}/north.zarr", config="archive")
    assert said.startswith("Trained needs lat 90 to -90 by 22.5")
