"""recipe=train: ranks learn together, end together, go on, and make a package that is diagnosed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from testing import application
from testing.preloaded import run_main
from tests.ranks.conftest import leaving_nothing
from tests.training import stores

pytestmark = pytest.mark.timeout(400)
SLOW = pytest.mark.slow
FIRST = ("runtime.nproc=1", "training.epochs=8", "runtime.seed=4294967298", "output.mode=resume")
Start = Callable[..., application.Outcome]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run the recipe in the test's folder."""
    stores.make(tmp_path)

    def start(*overrides: str, **more: Any) -> application.Outcome:
        return run_main(*stores.SMALL, *overrides, folder=tmp_path, deadline=200, **more)

    return start


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a training in one process, and what it printed; a killed run had begun it."""
    folder = tmp_path_factory.mktemp("first")
    stores.make(folder)
    trained = folder / "trained"
    (trained / "tensorboard").mkdir(parents=True)
    for name in (".distinf.lock", "learning_curve.png", "part.package.json"):
        (trained / name).touch()
    done = run_main(*stores.SMALL, *FIRST, "training.log=tensorboard", folder=folder, deadline=200)
    assert done.status == 0, done.err
    return folder, done.out


@pytest.fixture
def trained(first: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of its package in the test's folder."""
    return Path(shutil.copytree(first[0] / "trained", tmp_path / "trained"))


def package(folder: Path, name: str = "trained") -> list[bytes]:
    return stores.package(folder / name)


@SLOW
def test_a_package_is_trained_and_diagnosed(
    first: tuple[Path, str], trained: Path, tmp_path: Path
) -> None:
    stores.make(tmp_path)
    named = json.loads((trained / "package.json").read_text())
    scores = named["scores"]["ke"]
    assert scores["network"] < 0.5 * scores["mean_at_each_point"] < scores["mean_at_each_point"]
    assert "ke on 6 held-out pairs: RMSE" in first[1]
    assert (trained / "learning_curve.png").stat().st_size > 10_000
    made = stores.dataset()
    out = made.sel(time=stores.TIMES[3:])
    weight = np.cos(np.radians(made.lat))
    mean = made.ke.sel(time=stores.TIMES[:3]).mean(["ensemble", "time", "lead_time"])
    trivial = ((out.ke - mean) ** 2).weighted(weight).mean() ** 0.5
    assert scores["mean_at_each_point"] == pytest.approx(float(trivial), rel=1e-4)
    words = ["data.path=in.zarr", "diagnostic=trained", "diagnostic.trained.package=trained"]
    done = run_main(
        "--config-name=archive", *words, "runtime.nproc=2", folder=tmp_path, deadline=200
    )
    assert done.status == 0, done.err
    with xr.open_zarr(tmp_path / "archive.zarr") as found:
        assert found.ke.attrs["units"] == "m2 s-2"
        error = (found.ke.sel(time=stores.TIMES[3:]) - out.ke) ** 2
        assert scores["network"] == pytest.approx(
            float(error.weighted(weight).mean() ** 0.5), rel=1e-3
        )


@SLOW
def test_two_ranks_train_together_and_go_on_with_the_same_bytes(
    start: Start, trained: Path, tmp_path: Path
) -> None:
    done = start("runtime.nproc=2", "parameters.output_path=whole")
    assert done.status == 0, done.err
    part = ["parameters.output_path=part", "output.mode=resume"]
    words = application.torchrun_main(2, *stores.SMALL, *part)
    with leaving_nothing(30) as environment:
        process = application.start(words, tmp_path, **environment)
        stores.wait_for(tmp_path / "part/checkpoints/epoch_000002", process)
        process.kill()  # torchrun, and by that its ranks
        process.communicate()
    assert not (tmp_path / "part/package.json").exists()
    done = start("runtime.nproc=2", *part)
    assert done.status == 0, done.err
    assert "epochs 1 to " in done.out
    assert package(tmp_path, "part") == package(tmp_path, "whole")
    one, two = (
        json.loads((folder / "package.json").read_text())
        for folder in (trained, tmp_path / "whole")
    )
    for name, (mean, std) in one["inputs"].items():
        np.testing.assert_allclose(two["inputs"][name], [mean, std], rtol=1e-6)
    done = start("runtime.nproc=1", *part)
    assert done.status == 0, done.err
    assert "the training began on 2 rank(s) and goes on with 1: its result will differ" in done.out


@SLOW
def test_a_lost_rank_ends_all_and_the_training_goes_on_with_the_same_bytes(
    start: Start, tmp_path: Path
) -> None:
    """With four ranks the order of sums matters, and no launcher ends the others."""
    long = ("training.epochs=12", "parameters.output_path=part", "output.mode=resume")
    with leaving_nothing(30) as environment:
        ranks = start_ranks(tmp_path, 4, environment, *stores.SMALL, *long)
        stores.wait_for(tmp_path / "part/checkpoints/epoch_000003", ranks[0])
        killed = time.monotonic()
        ranks[2].kill()  # which is no neighbour of rank 0 in a ring
        ends = [application.finish(rank, 30 - (time.monotonic() - killed)) for rank in ranks]
    assert ends[0].status == 1
    assert ends[2].status == -signal.SIGKILL
    assert "rank 2 was lost" in ends[0].err
    assert "runs diagnostics" not in ends[0].err
    assert "Traceback" not in ends[0].err
    assert list((tmp_path / "part/checkpoints").glob("epoch_*"))
    assert not (tmp_path / "part/package.json").exists()
    for name, mode in (("part", "resume"), ("whole", "create")):
        words = (f"parameters.output_path={name}", f"output.mode={mode}", "runtime.nproc=4")
        done = start("training.epochs=12", *words)
        assert done.status == 0, done.err
    assert package(tmp_path, "part") == package(tmp_path, "whole")


@SLOW
def test_a_lost_driver_ends_all(start: Start, tmp_path: Path) -> None:
    with leaving_nothing(30) as environment:
        ranks = start_ranks(tmp_path, 3, environment, *stores.SMALL, "training.epochs=1000")
        stores.wait_for(tmp_path / "trained/checkpoints/epoch_000002", ranks[0])
        ranks[0].kill()
        ends = [application.finish(rank, 30) for rank in ranks]
    assert all(end.status != 0 for end in ends)


@SLOW
@pytest.mark.parametrize(
    ("number", "status", "words"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_a_signal_ends_a_training_in_one_process(
    start: Start, tmp_path: Path, number: int, status: int, words: str
) -> None:
    def end(pid: int) -> None:
        stores.wait_for(tmp_path / "trained/checkpoints/epoch_000002")
        os.kill(pid, number)

    done = start("runtime.nproc=1", "training.epochs=1000", meanwhile=end)
    assert done.status == status, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("distinf:")]
    assert line.startswith(f"distinf: {words}. its checkpoints stay in ")
    assert "output.mode=resume" in line
    assert "Traceback" not in done.err


def start_ranks(
    folder: Path, size: int, environment: dict[str, str], *words: str
) -> list[application.subprocess.Popen[str]]:
    """Start ranks without a launcher that would end them together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    command = [sys.executable, str(application.ROOT / "main.py"), *words]
    found = []
    for rank in range(size):
        ranks = {**own, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        more = {**environment, **{name: str(value) for name, value in ranks.items()}}
        found.append(application.start(command, folder, **more))
    return found


@SLOW
def test_an_existing_package_is_kept(start: Start, trained: Path, tmp_path: Path) -> None:
    before = package(tmp_path)
    done = start("runtime.nproc=1", "training.epochs=1")
    assert done.status == 1
    assert "trained exists: choose another parameters.output_path, output.mode=resume" in done.err
    done = start(*FIRST, "training.epochs=2")
    assert done.status == 1
    assert "training.epochs=2: " in done.err
    assert "was made with 8; use the same" in done.err
    done = start("runtime.nproc=1", "output.mode=overwrite", "network.padding=x")
    assert done.status == 1
    assert "network: it cannot be" in done.err
    assert package(tmp_path) == before
    done = start("runtime.nproc=1", "training.epochs=2", "output.mode=overwrite")
    assert done.status == 0, done.err
    assert package(tmp_path) != before
    assert not (trained / "tensorboard").exists()


@SLOW
def test_a_loss_that_is_not_finite_ends_the_training(start: Start) -> None:
    done = start("runtime.nproc=1", "training.learning_rate=1e30")
    assert done.status == 1
    assert "training.learning_rate=1e+30: the loss of epoch" in done.err


@SLOW
@pytest.mark.parametrize(
    ("dates", "hours", "factor", "words"),
    [
        (slice(None), 1, 1.0, "was made with other pairs"),
        (slice(2), 0, 1.001, "data.path: the values are not those with which trained/checkpoints/"),
        (slice(3, None), 0, 1.001, "data.path: the values are not those with which"),
    ],
    ids=["other steps", "other values", "other held-out values"],
)
def test_a_training_does_not_go_on_with_other_data(
    start: Start, trained: Path, tmp_path: Path, dates: slice, hours: int, factor: float, words: str
) -> None:
    before = package(tmp_path)
    other = stores.dataset()
    other["lead_time"] = other.lead_time + np.timedelta64(hours, "h")
    other.ke[:, dates] *= factor
    other.to_netcdf(tmp_path / "other.nc")
    done = start(*FIRST, "data.path=other.nc")
    assert done.status == 1
    assert words in done.err
    assert "Traceback" not in done.err
    assert package(tmp_path) == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.epoch=3"], "training.epoch"),
        (["training.batch=0"], "training.batch=0: must be a whole number, at least 1"),
        (["training.learning_rate=-1"], "training.learning_rate=-1: must be a number above 0"),
        (["data.held_out=2023-07-01"], "data.held_out=2023-07-01T00:00: the data does not have"),
        (["data.held_out=never"], "data.held_out=never: not a time"),
        (["data.target=???"], "data.target is missing"),
        (["data.target=u850"], "data.target=u850 is among data.inputs, too"),
        (["data.path=nowhere.zarr"], "data.path=nowhere.zarr cannot be read"),
        (["network._target_=physicsnemo.models.fno.FN"], "Did you mean physicsnemo.models.fno.FNO"),
        (["+network.latent=3"], "network.latent does not exist"),
        (["runtime.engine=ray"], "runtime.engine=ray: the ranks of a training form one process"),
        (
            ["runtime.nonfinite=fail", "runtime.call_timeout=null", "runtime.threads=2"],
            "runtime.call_timeout, runtime.nonfinite: without effect on a training",
        ),
        (["parameters.output_path=in.zarr"], "parameters.output_path"),
        (["parameters.output_path=s3://b/a"], "must be a local folder"),
        (["network.padding=x"], "network"),
    ],
)
def test_wrong_settings_are_one_line(
    start: Start, tmp_path: Path, overrides: list[str], words: str
) -> None:
    more = [] if "runtime.engine=ray" in overrides else ["runtime.nproc=1"]
    done = start(*overrides, *more)
    assert done.status == 1
    assert words in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "trained" / "package.json").exists()


def test_a_logger_that_is_not_installed_is_named(start: Start) -> None:
    done = start("runtime.nproc=1", "training.log=mlflow")
    assert done.status == 1
    said = r"training\.log=mlflow: mlflow is not installed: (uv )?pip install mlflow\n"
    assert re.search(said, done.err)


def test_tensorboard_gets_the_curves(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    named = json.loads((trained / "package.json").read_text())
    for tag, values in {
        "loss": [epoch["loss"] for epoch in named["history"]],
        "rmse/ke": [epoch["rmse"]["ke"] for epoch in named["history"]],
    }.items():
        logged = [event.value for event in events.Scalars(tag)]
        np.testing.assert_allclose(logged, values, rtol=1e-6)


def test_a_trained_model_is_one_of_earth2studio_s(trained: Path, tmp_path: Path) -> None:
    from earth2studio.models.auto import Package

    from distinf.models import Trained

    model = Trained.load_model(Package(str(trained))).to("cpu")
    (tmp_path / "again").mkdir()
    model.save(tmp_path / "again")
    assert package(tmp_path, "again")[0] == package(tmp_path)[0]
    with zipfile.ZipFile(trained / "network.mdlus") as archive:
        assert {file.date_time[0] for file in archive.infolist()} == {1980}  # no time of day
    coords = model.input_coords()
    assert list(coords["variable"]) == ["u850", "v850"]
    del coords["batch"]
    coords = type(coords)(ensemble=np.arange(2), time=stores.TIMES, **coords)
    x = torch.randn(2, 4, 2, 9, 16) * 5 + 10
    y, out = model(x, coords)
    assert y.shape == (2, 4, 1, 9, 16)
    assert [*out] == ["ensemble", "time", "variable", "lat", "lon"]
    assert list(out["variable"]) == ["ke"]
    other = type(coords)(coords, lat=coords["lat"][:-1])
    with pytest.raises((ValueError, KeyError)):
        model(x[..., :-1, :], other)
