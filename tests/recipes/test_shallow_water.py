"""The main job as a user runs it: one store, the same bytes whoever started the ranks."""

from __future__ import annotations

import json
import signal
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import xarray as xr

from testing.application import SMALL, Outcome, finish, python_main, run, start, torchrun_main
from testing.preloaded import run_main
from tests.report.test_trace import assert_valid

LAUNCHES = {
    "nproc-1": partial(run, python_main("runtime.nproc=1", *SMALL)),
    "nproc-2": partial(run_main, "runtime.nproc=2", *SMALL),
    "nproc-3": partial(run, python_main("runtime.nproc=3", *SMALL)),
    "nproc-5": partial(run_main, "runtime.nproc=5", "output.writer=workers", *SMALL),
    "torchrun": partial(run, torchrun_main(3, "--config-name=shallow_water", *SMALL)),
}
QUICK = ("nproc-1",)
SLOW = pytest.mark.slow


def launches(*names: str) -> list[Any]:
    """Names of launches as parameters, most of them slow."""
    return [name if name in QUICK else pytest.param(name, marks=SLOW) for name in names]


class Runs:
    """Each launch is run once, when a test first asks for it."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._done: dict[str, tuple[Path, Outcome]] = {}

    def __getitem__(self, name: str) -> tuple[Path, Outcome]:
        if name not in self._done:
            folder = self._factory.mktemp(name)
            self._done[name] = (folder, LAUNCHES[name](folder=folder))
        return self._done[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory)


def store(folder: Path) -> xr.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.open_zarr(folder / "shallow_water.zarr")


@pytest.mark.parametrize("name", launches(*LAUNCHES))
def test_every_launch_ends_well(runs: Runs, name: str) -> None:
    folder, outcome = runs[name]
    assert outcome.status == 0, outcome.err
    assert "Wall time" in outcome.out
    assert "Limited by" in outcome.out
    assert (folder / "shallow_water.png").read_bytes().startswith(b"\x89PNG")
    # One run directory, whatever the number of ranks; nothing else of ours.
    assert len(list(folder.glob("outputs/*/*"))) == 1
    assert {path.name for path in folder.iterdir()} == {
        "outputs",
        "shallow_water.zarr",
        "shallow_water.png",
    }


@pytest.mark.parametrize("name", launches(*(name for name in LAUNCHES if name != "nproc-1")))
def test_bytes_do_not_depend_on_the_ranks(runs: Runs, name: str) -> None:
    alone, farmed = store(runs["nproc-1"][0]), store(runs[name][0])
    assert set(alone.variables) == set(farmed.variables)
    for variable in alone.variables:
        np.testing.assert_array_equal(alone[variable].values, farmed[variable].values)
    # Not only the decoded values: the very chunks.
    for path in (runs["nproc-1"][0] / "shallow_water.zarr").rglob("c/**/*"):
        if path.is_file():
            other = runs[name][0] / path.relative_to(runs["nproc-1"][0])
            assert path.read_bytes() == other.read_bytes(), path


@pytest.mark.slow
def test_store_tells_what_it_holds(runs: Runs) -> None:
    ds = store(runs["nproc-3"][0])
    assert dict(ds.sizes) == {"time": 1, "lead_time": 6, "lat": 64, "lon": 128}
    assert ds.lead_time.values[1] == np.timedelta64(6, "h")
    for variable, units in {
        "vo850": "s-1",
        "d850": "s-1",
        "strf850": "m2 s-1",
        "vp850": "m2 s-1",
    }.items():
        assert ds[variable].attrs["units"] == units
        assert ds[variable].attrs["long_name"]
        assert ds[variable].dtype == np.float32
        assert ds[variable].encoding["chunks"] == (1, 1, 64, 128)
        assert np.isfinite(ds[variable].values).all()
    growth = ds.error_growth850
    assert growth.attrs["units"] == "day-1"
    assert growth.attrs["long_name"] == "growth rate of small errors of the wind at 850 hPa"
    assert np.isfinite(growth.values).all()
    assert ds.wind_decomposition_complete.values.all()
    assert ds.error_growth_complete.values.all()
    config = json.loads(ds.attrs["config"])
    assert config["prognostic"]["nlat"] == 64
    assert "torch" in json.loads(ds.attrs["versions"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "writers"),
    [("nproc-3", {0}), ("nproc-5", {1, 2, 3, 4})],
)
def test_who_writes(runs: Runs, name: str, writers: set[int]) -> None:
    (log,) = runs[name][0].glob("outputs/*/*/events.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    written = [event for event in events if event["kind"] == "write"]
    assert len(written) == 12
    assert {event["rank"] for event in written} <= writers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nproc-3", "nproc-5"])
def test_the_timeline_shows_every_task(runs: Runs, name: str) -> None:
    (path,) = runs[name][0].glob("outputs/*/*/trace.json")
    entries = json.loads(path.read_text())["traceEvents"]
    assert_valid(entries)
    slices = [entry for entry in entries if entry["ph"] == "X"]
    kinds = {kind: sum(entry["cat"] == kind for entry in slices) for kind in ("diagnose", "write")}
    assert kinds == {"diagnose": 12, "write": 12}
    arrows = [entry["name"] for entry in entries if entry["ph"] == "f"]
    assert (arrows.count("step"), arrows.count("result")) == (12, 12)
    memory = [e["args"]["MB"] for e in entries if e["ph"] == "C" and e["name"] == "memory"]
    assert len(memory) == 12
    assert min(memory) > 50  # torch alone is more


@pytest.mark.slow
def test_it_is_a_pipeline(runs: Runs) -> None:
    (log,) = runs["nproc-3"][0].glob("outputs/*/*/events.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    forecast = sorted((e for e in events if e["kind"] == "forecast"), key=lambda e: e["start"])
    diagnosed = sorted((e for e in events if e["kind"] == "diagnose"), key=lambda e: e["start"])
    assert (len(forecast), len(diagnosed)) == (6, 12)
    assert {event["rank"] for event in diagnosed} == {1, 2}
    assert any(
        later["start"] < event["end"] for event, later in zip(diagnosed, forecast[1:], strict=False)
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("parameters.nstep=2", ["parameters.nstep ", "nsteps", "output_path"]),
        ("++parameters.nstep=2", ["parameters.nstep ", "nsteps", "output_path"]),
        ("+runtime.nporc=2", ["runtime.nporc", "nproc", "threads"]),
        ("prognostic.nlatt=2", ["prognostic.nlatt", "nlat"]),
        ("+prognostic.nlatt=2", ["prognostic.nlatt", "nlat"]),
        ("data=nothing", ["data/nothing", "galewsky", "netcdf"]),
        ("--config-name=nothing", ["nothing", "shallow_water"]),
        ("recipe=nothing", ["recipe=nothing", "shallow_water"]),
        ("parameters.time=yesterday", ["parameters.time=yesterday", "2023-06-01T00:00:00"]),
        ("parameters.nsteps=0", ["parameters.nsteps=0", "at least 1"]),
        ("output.mode=append", ["output.mode=append", "create", "overwrite", "resume"]),
        ("runtime.carrier=pigeon", ["runtime.carrier=pigeon", "auto", "cuda", "host"]),
        pytest.param(
            "diagnostic.wind_decomposition.levels=[500]", ["u500", "v500", "u850"], marks=SLOW
        ),
        ("parameters.output_path=there.zarr", ["there.zarr", "overwrite", "resume", "path"]),
        ("parameters.ensemble=0", ["parameters.ensemble=0", "at least 1"]),
        ("diagnostic.wind_decomposition.after=rain", ["after=rain", "wind_decomposition"]),
        pytest.param(
            "+diagnostic.again=${diagnostic.wind_decomposition}",
            ["vo850", "diagnostic.again.rename"],
            marks=SLOW,
        ),
        pytest.param(
            "output.region={lat:[80,80.1]}",
            ["output.region", "no point", "wind_decomposition"],
            marks=SLOW,
        ),
        pytest.param(
            "output.variables=[vo500]",
            ["output.variables=['vo500']", "no diagnostic makes vo500"],
            marks=SLOW,
        ),
        pytest.param(
            "output.prognostic_variables=[t2m]",
            ["output.prognostic_variables", "t2m", "u850"],
            marks=SLOW,
        ),
        ("diagnostic.wind_decomposition.workers=5", ["workers=5", "start 7 ranks"]),
        ("parameters.output_path=s3://nobody/x.zarr", ["s3://nobody/x.zarr", "AWS_ACCESS_KEY_ID"]),
    ],
)
def test_wrong_input_is_one_clear_error(tmp_path: Path, override: str, words: list[str]) -> None:
    (tmp_path / "there.zarr").mkdir()
    (tmp_path / "there.zarr" / "precious").write_text("data")
    nobody = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null"}
    nobody["AWS_SHARED_CREDENTIALS_FILE"] = "/dev/null"
    outcome = run_main(override, folder=tmp_path, deadline=150, **nobody)
    assert outcome.status == 1
    assert outcome.err.startswith("distinf: error: ")
    assert "Traceback" not in outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert outcome.out == ""
    assert (tmp_path / "there.zarr" / "precious").read_text() == "data"
    assert not list(tmp_path.glob("shallow_water.*"))


@pytest.mark.slow
def test_wrong_input_is_told_once_under_torchrun(tmp_path: Path) -> None:
    began = time.monotonic()
    outcome = run(torchrun_main(3, "+runtime.nporc=2"), tmp_path, deadline=150)
    assert outcome.status != 0
    assert outcome.err.count("distinf: error:") == 1
    assert "runtime.nporc does not exist" in outcome.err
    assert time.monotonic() - began < 40  # 10 s are promised; torchrun itself takes some to start


def test_data_file_without_winds(tmp_path: Path) -> None:
    xr.Dataset({"t2m": (("lat", "lon"), np.zeros((3, 4)))}).to_netcdf(tmp_path / "t.nc")
    outcome = run_main("data=netcdf", "data.paths=[t.nc]", folder=tmp_path, deadline=150)
    assert outcome.status == 1
    assert "t.nc" in outcome.err
    assert "Traceback" not in outcome.err


def test_an_output_that_is_the_input_is_refused_and_the_input_kept(tmp_path: Path) -> None:
    coords = {"time": np.array(["2000-01-01"], "M8[ns]"), "lat": [1.0, 0.0], "lon": [0.0, 1.0]}
    fields = {"u850": (("time", "lat", "lon"), np.ones((1, 2, 2)))}
    xr.Dataset(fields, coords).to_zarr(tmp_path / "in.zarr")
    before = {p: p.read_bytes() for p in tmp_path.glob("in.zarr/**/*") if p.is_file()}
    where = ("data=file", "data.path=in.zarr", f"parameters.output_path={tmp_path}/in.zarr")
    outcome = run_main(*where, "output.mode=overwrite", folder=tmp_path, deadline=150)
    assert outcome.status == 1
    assert "in.zarr is data.path (in.zarr): choose another path" in outcome.err
    assert "Traceback" not in outcome.err
    assert {p: p.read_bytes() for p in tmp_path.glob("in.zarr/**/*") if p.is_file()} == before


@SLOW
def test_interrupt_keeps_what_was_written_and_resume_completes_it(
    runs: Runs, tmp_path: Path
) -> None:
    process = start(python_main("runtime.nproc=3", *SMALL), tmp_path)
    first = tmp_path / "shallow_water.zarr" / "wind_decomposition_complete" / "c" / "0" / "0"
    deadline = time.monotonic() + 120
    while not first.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ranks = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    outcome = finish(process, 30)
    assert time.monotonic() - began < 10
    assert outcome.status == 130
    assert "output.mode=resume" in outcome.err
    assert "Traceback" not in outcome.err
    assert psutil.wait_procs(ranks, timeout=10)[1] == []
    marks = store(tmp_path)
    done = int(marks.wind_decomposition_complete.sum() + marks.error_growth_complete.sum())
    assert done >= 1

    again = run_main("runtime.nproc=2", "output.mode=resume", *SMALL, folder=tmp_path)
    assert again.status == 0, again.err
    assert f"{12 - done} of 12 tasks to do" in again.out + again.err
    for variable in ("vo850", "d850", "strf850", "vp850", "error_growth850"):
        np.testing.assert_array_equal(
            store(tmp_path)[variable].values, store(runs["nproc-1"][0])[variable].values
        )
