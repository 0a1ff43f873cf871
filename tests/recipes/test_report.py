"""The report that a run leaves, and the recipe that makes one of a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.application import SMALL, Outcome, python_main, run
from testing.preloaded import run_main

RUN = (*(key for key in SMALL if key != "report=none"), "parameters.nsteps=2", "runtime.nproc=2")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("report")
    return folder, run_main(*RUN, folder=folder)


def pages(folder: Path) -> list[Path]:
    return sorted(folder.glob("**/report.html"), key=lambda path: path.stat().st_mtime)


def test_a_run_leaves_a_report_in_its_folder(done: tuple[Path, Outcome]) -> None:
    folder, outcome = done
    assert outcome.status == 0, outcome.err
    (page,) = pages(folder)
    assert page.parent.parent.parent == folder / "outputs"
    assert f"Report: {page}" in outcome.out
    text = page.read_text(encoding="utf-8")
    assert "6 of 6 tasks" in text
    for shown in (
        "Maps of vo850",
        "Maps of error_growth850",
        "Area means",
        "Timeline of the ranks",
    ):
        assert f'alt="{shown}"' in text
    assert "Limited by" in text


@pytest.mark.slow
def test_the_recipe_finds_the_run_of_a_store(done: tuple[Path, Outcome]) -> None:
    folder, _ = done
    before = pages(folder)
    wanted = ("recipe=report", "report.variables=[error_growth850]", "report.lead_times=[6h,12h]")
    store = ("--config-name=archive", "parameters.output_path=shallow_water.zarr")  # of any recipe
    outcome = run(python_main(*store, *wanted), folder)
    assert outcome.status == 0, outcome.err
    assert f"Events: {before[0].parent / 'events.jsonl'}" in outcome.out
    page = pages(folder)[-1]
    text = page.read_text(encoding="utf-8")
    assert 'alt="Maps of error_growth850"' in text
    assert 'alt="Maps of vo850"' not in text
    assert "2 of 3 steps" in text
    assert 'alt="Timeline of the ranks"' in text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("report.variables=[tp]", "report.variables: nothing makes tp; the store will have"),
        ("report.lead_times=soon", "report.lead_times=soon: write it like 30min, 6h or 1d"),
        ("report.time=[2000-01-01,2000-01-02]", "must be one initial time"),
        ("report.lead_times=[7h]", "report.lead_times: the run stores no lead time of 7 h"),
        ("report.time=2000-01-02", "report.time=2000-01-02: the run has no such initial time"),
        ("report.megabytes=0", "report.megabytes=0: must be a number of megabytes above 0"),
    ],
)
def test_a_wrong_wish_is_refused_before_anything_is_written(
    wrong: str, said: str, tmp_path: Path
) -> None:
    outcome = run_main(*RUN, wrong, folder=tmp_path)
    assert outcome.status == 1
    assert said in outcome.err
    assert not (tmp_path / "shallow_water.zarr").exists()


@pytest.mark.slow
def test_a_file_of_events_that_is_not_there_is_named(done: tuple[Path, Outcome]) -> None:
    folder, _ = done
    outcome = run(python_main(*RUN, "recipe=report", "report.events=gone.jsonl"), folder)
    assert outcome.status == 1
    assert "report.events=gone.jsonl: there is no such file" in outcome.err


@pytest.mark.slow
def test_a_report_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path) -> None:
    (tmp_path / "own" / "report.html").mkdir(parents=True)
    outcome = run_main(*RUN, "hydra.run.dir=own", folder=tmp_path)
    assert outcome.status == 0, outcome.err
    assert "the report could not be written" in outcome.out + outcome.err
    assert (tmp_path / "shallow_water.zarr").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "number"), [((), 0), (("report.sweeps=true",), 2)])
def test_the_runs_of_a_sweep_leave_reports_only_if_asked(
    wanted: tuple[str, ...], number: int, tmp_path: Path
) -> None:
    sweep = (*RUN[:-2], "runtime.nproc=1", "parameters.nsteps=1,2")
    outcome = run(python_main("--multirun", *sweep, *wanted), tmp_path)
    assert outcome.status == 0, outcome.err
    assert len(pages(tmp_path)) == number
