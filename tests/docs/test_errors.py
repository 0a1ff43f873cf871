"""The error lines that docs/failures.md shows are those of the code."""

import re
import shlex

import pytest

from testing.application import ROOT
from testing.preloaded import run_main

SMALL = ("recipe=diagnostic", "prognostic.nlat=32", "prognostic.nlon=64", "diagnostic=wind_speed")
TABLE = (
    (ROOT / "docs" / "failures.md")
    .read_text(encoding="utf-8")
    .partition("### Before the run")[2]
    .partition("### During the run")[0]
)
ROWS = re.findall(r"^\| `([^`]*)`([^|]*)\| `([^`]*)` \|", TABLE, re.M)


def pattern(line):
    return ".*".join(map(re.escape, line.split("…")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a small store of the default name, and a folder of somebody's own."""
    folder = tmp_path_factory.mktemp("errors")
    made = run_main(*SMALL, "parameters.nsteps=1", "runtime.nproc=1", folder=folder)
    assert made.status == 0, made.err
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    return folder


def test_all_rows_are_found():
    assert len(ROWS) == len(re.findall(r"^\| `", TABLE, re.M)) > 15


@pytest.mark.slow
@pytest.mark.parametrize(("given", "when", "line"), ROWS, ids=[row[0] for row in ROWS])
def test_a_wrong_command_gives_its_line(given, when, line, folder):
    overrides = shlex.split(given)
    if "resume" in given:  # by a run that differs in nothing else
        overrides += [*SMALL, "runtime.nproc=1"]
    elif "output_path" not in given and "where" not in when:
        overrides.append("parameters.output_path=other.zarr")
    outcome = run_main(*overrides, folder=folder, deadline=120)
    assert outcome.status == 1, outcome.err
    assert re.search(f"^distinf: error: {pattern(line)}", outcome.err, re.M), outcome.err
