"""The picture of the default recipe takes the place of no other file."""

from __future__ import annotations

import os
from pathlib import Path

import hydra
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from omegaconf import DictConfig

from distinf.errors import ConfigError
from recipes.shallow_water import check, picture_path
from recipes.shallow_water_figure import draw

CFG = Path(__file__).parents[2] / "cfg"
SMALL = ("prognostic.nlat=33", "prognostic.nlon=64")


def compose(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CFG), version_base="1.3"):
        return hydra.compose("shallow_water", [*SMALL, *overrides])


def store(path: Path) -> str:
    coords = {
        "time": np.array(["2000-01-01"], "M8[ns]"),
        "lead_time": np.array([0, 6], "m8[h]").astype("m8[ns]"),
        "lat": np.linspace(90, -90, 5),
        "lon": np.arange(0.0, 360.0, 45.0),
    }
    field = np.random.default_rng(0).standard_normal((1, 2, 5, 8))
    xr.Dataset({"vo850": (tuple(coords), field)}, coords).to_zarr(path)
    return str(path)


def plot(path: Path) -> None:
    figure, _ = plt.subplots()
    figure.savefig(path)
    plt.close(figure)


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
@pytest.mark.parametrize("kind", ["plot", "text", "link"])
def test_a_file_of_somebody_else_is_kept(tmp_path: Path, mode: str, kind: str) -> None:
    there = tmp_path / "f.png"
    if kind == "plot":
        plot(there)
    elif kind == "text":
        there.write_text("mine")
    else:
        os.symlink("nowhere", there)
    before = None if kind == "link" else there.read_bytes()
    cfg = compose(f"parameters.output_path={tmp_path}/f.zarr", f"output.mode={mode}")
    with pytest.raises(ConfigError, match=r"f\.png.* exists and distinf did not draw it") as said:
        check(cfg)
    assert "\n" not in str(said.value)
    made = store(tmp_path / "other.zarr")
    with pytest.raises(ConfigError, match="did not draw it"):
        draw(made, str(there))
    assert there.is_symlink() if before is None else there.read_bytes() == before


def test_a_picture_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    there = tmp_path / "f.png"
    made = store(tmp_path / "other.zarr")
    draw(made, str(there))
    there.write_bytes(there.read_bytes() + b"\0")
    check(compose(f"parameters.output_path={tmp_path}/f.zarr"))
    before = there.read_bytes()
    draw(made, str(there))
    assert there.read_bytes() != before


@pytest.mark.parametrize(
    ("path", "picture"),
    [
        ("a/f.zarr", "a/f.png"),
        ("a/f.zarr/", "a/f.png"),
        ("a/run.1", "a/run.1.png"),
        ("run.2.zarr", "run.2.png"),
        ("f.png", "f.png.png"),
        ("s3://bucket/a/f.zarr", "f.png"),
    ],
)
def test_it_is_called_as_its_store(path: str, picture: str) -> None:
    assert picture_path(compose(f"parameters.output_path={path}")) == picture
