"""Every command and every Python block of the pages, run as printed; launchers: test_launchers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from testing.application import run
from testing.pages import MARKS, blocks, commands, copy_project
from tests.docs.running import DOCS, pages, path_of, run_page, starts_processes

PAGES = [page for page in pages() if not page.startswith("launchers/")]
# These continue each other: the first one that runs makes the result of the main job.
TOGETHER = ("start.md", "gallery.md", "README.md")
PAGES.sort(key=lambda page: TOGETHER.index(page) if page in TOGETHER else len(TOGETHER))


def _nine_values(printed: str, folder: Path) -> None:
    shown = printed.rpartition("[[")[2]  # one value for each of nine lead times
    assert len(re.findall(r"\d\.\d*(?:e[+-]\d+)?", shown)) == 9, shown
    assert "nan" not in shown


def _three_values(printed: str, folder: Path) -> None:
    shown = printed.rpartition("[[")[2].partition("]]")[0]
    assert len(re.findall(r"\d+\.\d*", shown)) == 3, shown


def _guide(printed: str, folder: Path) -> None:
    assert printed.count("calls of the workers: 5") == 2  # by python and by torchrun
    assert "[[" in printed
    assert "Limited by" in printed


def _largest(printed: str, folder: Path) -> None:
    with xr.open_dataset(folder / "largest.nc") as fields:
        assert fields.sizes == {"lat": 64, "lon": 128}
        assert {"vo850", "d850"} <= set(fields)
        assert all(np.isfinite(field.values).all() for field in fields.values())
        assert fields.vo850.values.max() > 1e-5  # s-1: the jet is there


def _pictures(printed: str, folder: Path) -> None:
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    for name in re.findall(r"\(_build/gallery/(\S+)\)", text):
        assert (folder / name).stat().st_size > 10_000, name


def _beats_the_mean(printed: str, folder: Path) -> None:
    print(printed)  # its figures
    scores = json.loads((folder / "trained" / "package.json").read_text())["scores"]
    own = scores["error_growth850"]
    assert own["network"] < 0.95 * min(own["mean_at_each_point"], own["mean_of_all"])
    seconds = dict(re.findall(r"^(\w+): ([\d.]+) s per call", printed, re.M))
    assert float(seconds["network"]) < 0.2 * float(seconds["error_growth"])
    with xr.open_zarr(folder / "cheap.zarr") as store:
        assert "error_growth850" in store


CHECKS: dict[str, Callable[[str, Path], None]] = {
    "archive.md": _nine_values,
    "drivers.md": _nine_values,
    "models.md": _three_values,
    "custom_applications.md": _guide,
    "second_recipe.md": _largest,
    "training.md": _beats_the_mean,
    "gallery.md": _pictures,
}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    folder = tmp_path_factory.mktemp("together")
    copy_project(folder)
    return folder, set()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] if starts_processes(p) else []) for p in PAGES],
)
def test_a_page_works_as_printed(
    page: str, tmp_path: Path, together: tuple[Path, set[str]]
) -> None:
    folder, done = tmp_path, set()
    if page in TOGETHER:
        folder, done = together
        before = TOGETHER[: TOGETHER.index(page)] if page != "README.md" else ()
        for earlier in before:  # where this test was chosen alone
            run_page(earlier, folder, done)
    else:
        copy_project(folder)
    printed = run_page(page, folder, done)
    if page in CHECKS:
        CHECKS[page](printed, folder)


@pytest.mark.parametrize("page", [*pages()])
def test_every_fence_comment_and_name_of_a_file_is_read(page: str) -> None:
    text = path_of(page).read_text(encoding="utf-8")
    found = list(blocks(path_of(page)))
    assert len(found) == len(re.findall(r"^ *(?:`{3,}|:{3,}|~{3,})\S", text, re.M))
    assert len([block for block in found if block.mark]) == text.count("<!-- test")
    assert len([block for block in found if block.file]) == text.count("Save as `")


def test_each_mark_is_used_and_few_blocks_have_one() -> None:
    found = [block for page in pages() for block in blocks(path_of(page)) if block.mark]
    assert {block.mark for block in found} == set(MARKS)
    assert len([block for block in found if block.mark == "composes"]) < 10


def test_what_stands_for_installing_is_taken_away() -> None:
    assert commands("pip install uv && uv run main.py  # all") == [["python", "main.py"]]
    assert commands("uv run --group bench python -m benchmarks.x \\\n  --a") == [
        ["python", "-m", "benchmarks.x", "--a"]
    ]
    assert commands('pip install "distinf[ray]"\nuv run pytest\n') == [["uv", "run", "pytest"]]


@pytest.mark.slow
def test_what_the_guide_says_of_an_error_is_so(tmp_path: Path) -> None:
    files = {block.file: block.text for block in blocks(DOCS / "custom_applications.md")}
    text = files["application.py"].replace("StrongWind, 60.0", "StrongWind, 'high'")
    (tmp_path / "strong_wind.py").write_text(files["strong_wind.py"])
    (tmp_path / "wrong.py").write_text(text)
    done = run([sys.executable, "wrong.py"], tmp_path, deadline=250)
    assert done.status != 0
    assert re.search(r"StrongWind.* on rank [12] \(.+\), attempt 1: TypeError", done.err)
    assert "Traceback on rank" in done.err
