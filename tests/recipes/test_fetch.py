"""Fetching ahead, for login nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.preloaded import run_main


@pytest.mark.slow
def test_fetch_loads_everything_and_runs_nothing(tmp_path: Path) -> None:
    outcome = run_main(
        "--config-name=diagnostic",
        "recipe=fetch",
        "runtime.nproc=1",
        "prognostic=persistence",
        "prognostic.variable=[u10m,v10m]",
        "diagnostic=wind_speed",
        "diagnostic.wind_speed.levels=[10m]",
        "data=random",
        "parameters.time=[2020-01-01,2020-01-02]",
        folder=tmp_path,
    )
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines() == [
        "Fetched diagnostic wind_speed",
        "Fetched prognostic",
        "Fetched data of 2020-01-01T00:00",
        "Fetched data of 2020-01-02T00:00",
    ]
    assert not list(tmp_path.glob("*.zarr"))


@pytest.mark.slow
def test_fetch_says_what_it_cannot_reach(tmp_path: Path) -> None:
    outcome = run_main(
        "--config-name=diagnostic",
        "recipe=fetch",
        "runtime.nproc=1",
        "prognostic.package=http://127.0.0.1:9/fcn",  # nobody listens there
        "diagnostic=identity",
        "data=random",
        folder=tmp_path,
    )
    assert outcome.status == 1
    assert "distinf: error: prognostic: package http://127.0.0.1:9/fcn" in outcome.err
    assert "FCN" in outcome.err
    assert "package=/path" in outcome.err
    assert "Traceback" not in outcome.err
