"""The page: what it says of a store, on every kind of grid, and what a browser makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import LocalStore

from distinf.errors import StoreError
from distinf.html_report import Record, read_record, write_report
from distinf.html_report.maps import draw_maps
from distinf.html_report.selection import read_shown
from distinf.options import Report
from distinf.report import Event
from tests.html_report.stores import write_store

RNG = np.random.default_rng(0)
Y, X = np.meshgrid(np.linspace(-8, 8, 24), np.linspace(-9, 9, 30), indexing="ij")
GRIDS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[int, ...]]] = {
    "global": (
        {"lat": np.linspace(90, -90, 19), "lon": np.arange(0, 360, 10.0)},
        ("lat", "lon"),
        (19, 36),
    ),
    "region across Greenwich": (
        {"lat": np.array([60.0, 51.0, 43.0]), "lon": np.array([350.0, 355.0, 0.0, 5.0])},
        ("lat", "lon"),
        (3, 4),
    ),
    "curvilinear across the date line": (
        {"lat": (("y", "x"), 60 + Y), "lon": (("y", "x"), (180 + X + 180) % 360 - 180)},
        ("y", "x"),
        (24, 30),
    ),
    "points": (
        {"lat": ("cell", RNG.uniform(-90, 90, 300)), "lon": ("cell", RNG.uniform(0, 360, 300))},
        ("cell",),
        (300,),
    ),
    "no coordinates": ({"face": np.arange(12)}, ("face", "height", "width"), (12, 4, 4)),
}


def events(number: int = 5) -> list[Event]:
    """Events of a run with two workers; one is lost."""
    steps = [
        Event("forecast", f"2000-01-01 step {i}", 0, 100.0 + i, 100.8 + i) for i in range(number)
    ]
    calls = [
        Event("diagnose", f"model +{i}h", 1 + i % 2, 101.0 + i, 102.5 + i) for i in range(number)
    ]
    writes = [Event("write", f"model +{i}h", 0, 102.5 + i, 102.6 + i) for i in range(number)]
    return [
        *steps,
        *calls,
        *writes,
        Event("lost", "it ended <by signal 9>", 2, 104.0, 104.0),
    ]


@pytest.mark.parametrize("name", GRIDS)
def test_every_kind_of_grid_is_drawn(name: str, tmp_path: Path) -> None:
    grid, dims, shape = GRIDS[name]
    values = RNG.normal(size=(2, 1, 5, *shape))
    store = write_store(tmp_path / "x.zarr", {"t2m": values}, grid, dims)
    page = tmp_path / "report.html"
    write_report(str(store), page, Report(), None)
    text = page.read_text(encoding="utf-8")
    assert 'alt="Maps of t2m"' in text
    assert "mean and spread of 2 of 2 members" in text
    assert "10 of 10 tasks" in text
    assert ("no coordinates of its points" in text) == (name == "no coordinates")
    assert not list(tmp_path.glob("*.part"))
    field = 4 * np.prod(shape)  # all that may be read
    write_report(str(store), page, Report(megabytes=field / 1e6), None)
    text = page.read_text(encoding="utf-8")
    assert "; one of 2 members;" in text
    assert "spread" not in text


def test_a_member_that_is_not_there_leaves_the_others(tmp_path: Path) -> None:
    grid, dims, shape = GRIDS["global"]
    values = RNG.normal(size=(3, 1, 5, *shape))
    values[1, 0, 2:] = np.nan
    store = write_store(tmp_path / "x.zarr", {"t2m": values}, grid, dims)
    with xr.open_zarr(store, chunks=None) as opened:
        shown = read_shown(opened.t2m, None, None, 1e9)
    np.testing.assert_allclose(shown.mean[-1], values[[0, 2], 0, -1].mean(axis=0), atol=1e-6)
    assert shown.map_members == 2
    page = tmp_path / "report.html"
    write_report(str(store), page, Report(), None)
    assert "mean and spread of 2 of 3 members" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("north_first", [True, False])
def test_a_map_has_the_north_at_its_top(north_first: bool) -> None:
    lat = np.linspace(90, -90, 19) if north_first else np.linspace(-90, 90, 19)
    lon = np.arange(0, 360, 10.0)
    values = np.broadcast_to(lat[:, None], (19, 36)).astype(np.float32)
    coords = {"time": [np.datetime64(0, "ns")], "lead_time": [np.timedelta64(0, "ns")]}
    field = xr.DataArray(
        values[None, None], {**coords, "lat": lat, "lon": lon}, ("time", "lead_time", "lat", "lon")
    )
    figure = draw_maps(read_shown(field.rename("t2m"), None, None, 1e9))
    axis, (image,) = figure.axes[0], figure.axes[0].get_images()
    drawn, (west, east, bottom, top) = np.asarray(image.get_array()), image.get_extent()
    assert axis.get_ylim() == (-95.0, 95.0)
    assert (west, east) == (-5.0, 355.0)
    # The first row is at the top of the extent.
    assert drawn[0, 0] == (90 if top > bottom else -90)


def test_what_is_missing_and_who_was_lost_is_said(tmp_path: Path) -> None:
    grid, dims, shape = GRIDS["global"]
    store = write_store(
        tmp_path / "x.zarr", {"t2m": np.zeros((1, 5, *shape))}, grid, dims, missing=2
    )
    page = tmp_path / "report.html"
    write_report(str(store), page, Report(), Record(events(), (1, 2)))
    text = page.read_text(encoding="utf-8")
    assert "3 of 5 tasks" in text
    assert "2000-01-01 00:00, +24 h" in text
    assert "rank 2 was lost" in text
    assert "it ended &lt;by signal 9&gt;" in text
    assert "Limited by" in text
    assert "torch" in text
    assert "nsteps: 4" in text


def test_no_store_is_one_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"parameters\.output_path=.*no store"):
        write_report(str(tmp_path / "none.zarr"), tmp_path / "report.html", Report(), None)
    with pytest.raises(StoreError, match=r"parameters\.output_path=.*no store"):
        read_record(str(tmp_path / "none.zarr"), events())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_thousand_steps_are_not_all_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, dims, shape = GRIDS["global"]
    values = np.arange(1000.0)[None, :, None, None] + np.zeros((1, 1000, *shape))
    store = write_store(tmp_path / "x.zarr", {"t2m": values}, grid, dims)
    read: list[str] = []
    get = LocalStore.get

    async def counted(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        read.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "get", counted)
    size = 4 * np.prod(shape)
    wanted = Report(megabytes=40 * size / 1e6)
    write_report(str(store), tmp_path / "report.html", wanted, None)
    fields = [key for key in read if key.startswith("t2m/c/")]
    assert 30 <= len(fields) <= 41  # and one for the type
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "4 of 1000 steps" in text


def test_a_browser_shows_it_without_errors_or_requests(browser: Any, tmp_path: Path) -> None:
    grid, dims, shape = GRIDS["global"]
    store = write_store(tmp_path / "x.zarr", {"t2m": RNG.normal(size=(1, 5, *shape))}, grid, dims)
    page = tmp_path / "report.html"
    write_report(str(store), page, Report(), Record(events(), (1, 2)))
    browser.get(page.as_uri())
    assert browser.title == "x.zarr – report"
    assert browser.get_log("browser") == []
    sent = [
        entry["message"]
        for entry in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert all('"url":"data:' in entry or '"url":"file:' in entry for entry in sent)
    widths = browser.execute_script(
        "return [...document.images].map(i => i.complete ? i.naturalWidth : 0)"
    )
    assert len(widths) == 4  # maps, series, timeline, arithmetic
    assert min(widths) > 300
    links = browser.execute_script(
        "return [...document.links].map(a => document.querySelector(a.hash) !== null)"
    )
    assert links
    assert all(links)
    # Nothing is wider than the window.
    assert browser.execute_script("return document.body.scrollWidth <= window.innerWidth")
