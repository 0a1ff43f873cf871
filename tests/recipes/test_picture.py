"""The picture of the default recipe takes the place of no other file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hydra
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from omegaconf import DictConfig

from distinf.errors import ConfigError
from distinf.report import Event
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
    numbers = np.random.default_rng(0)
    fields = {
        name: (
            tuple(coords),
            numbers.standard_normal((1, 2, 5, 8)),
            {"long_name": text, "units": u},
        )
        for name, text, u in (("vo850", "vorticity", "s-1"), ("error_growth850", "growth", "day-1"))
    }
    xr.Dataset(fields, coords).to_zarr(path)
    return str(path)


def drawn(monkeypatch: pytest.MonkeyPatch, *args: Any) -> Figure:
    """Draw, and keep the figure."""
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        kept.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw(*args)
    return kept[0]


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


def test_each_variable_has_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(tmp_path / "f.zarr")
    figure = drawn(monkeypatch, made, str(tmp_path / "f.png"), ["vo850", "error_growth850", "x"])
    maps = [axis for axis in figure.axes if axis.get_title("left").startswith("day")]
    titles = [axis.get_title("left") for axis in maps]
    assert titles == ["day 0", "day 0", "day 0.25", "day 0.25"]
    labels = {axis.get_xlabel() for axis in figure.axes} - {""}
    assert labels == {"vorticity (s-1)", "growth (day-1)"}
    shown = [axis.collections[0].get_array() for axis in maps]
    with xr.open_zarr(made) as there:
        for column, name in enumerate(("vo850", "error_growth850")):
            for row in range(2):
                expected = there[name].values[0, row]
                assert np.array_equal(np.ravel(shown[2 * row + column]), expected.ravel())


def test_the_timeline_shows_what_each_rank_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store(tmp_path / "f.zarr")
    events = [
        Event("load", "prognostic", 0, 90.0, 100.0),
        Event("read", "", 0, 100.0, 101.0),
        Event("forecast", "step 1", 0, 101.0, 104.0),
        Event("diagnose", "error_growth 2000-01-01T00:00 +6 h", 2, 104.0, 109.0),
        Event("diagnose", "wind_decomposition 2000-01-01T00:00 +6 h", 1, 104.0, 106.0),
        Event("write", "wind_decomposition 2000-01-01T00:00 +6 h", 0, 106.5, 107.0),
    ]
    figure = drawn(monkeypatch, made, str(tmp_path / "f.png"), ["vo850"], events)
    (axis,) = (axis for axis in figure.axes if axis.get_xlabel().startswith("seconds"))
    lanes = [label.get_text() for label in axis.get_yticklabels()]
    assert lanes == ["rank 0", "rank 0 writes", "rank 1", "rank 2"]
    bars = {}
    for bar in axis.collections:
        corners = bar.get_paths()[0].vertices
        lane = lanes[round(float(corners[:, 1].mean()))]
        bars[lane, bar.get_label()] = (corners[:, 0].min(), corners[:, 0].max())
    assert bars == {
        ("rank 0", "read"): (0, 1),
        ("rank 0", "forecast"): (1, 4),
        ("rank 1", "wind_decomposition"): (4, 6),
        ("rank 2", "error_growth"): (4, 9),
        ("rank 0 writes", "write"): (6.5, 7),
    }


def test_many_ranks_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(tmp_path / "f.zarr")
    events = [Event("diagnose", "x 0", rank, rank, rank + 2.0) for rank in range(1, 200)]
    plain = drawn(monkeypatch, made, str(tmp_path / "f.png"), ["vo850"])
    figure = drawn(monkeypatch, made, str(tmp_path / "f.png"), ["vo850"], events)
    assert figure.get_figheight() < plain.get_figheight() + 8
    (axis,) = (axis for axis in figure.axes if axis.get_xlabel().startswith("seconds"))
    assert len(axis.get_yticklabels()) <= 24


def test_a_store_without_the_variable_or_without_values_is_drawn(tmp_path: Path) -> None:
    made = store(tmp_path / "f.zarr")
    with xr.open_zarr(made) as there:
        (there.load() * np.nan).to_zarr(tmp_path / "empty.zarr")
    for path, names in ((made, ["none"]), (str(tmp_path / "empty.zarr"), ["vo850"])):
        draw(path, str(tmp_path / "f.png"), names)
