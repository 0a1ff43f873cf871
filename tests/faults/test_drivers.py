"""Several drivers: the same bytes as of one, also when drivers and workers are lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr

from testing import application
from testing.preloaded import left_after, run_main
from tests.ranks.conftest import leaving_nothing

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]
WORDS = (
    *("prognostic.nlat=32", "prognostic.nlon=64", "recipe=diagnostic"),
    *("prognostic._target_=testing.forecasts.Slow", "+prognostic.noise=0.01"),
    *("parameters.nsteps=4", "parameters.ensemble=5", "output.restart_every=1"),
    *("parameters.output_path=out.zarr", "output.prognostic_variables=[z850]"),
    "output.statistics=[mean]",
)


class Drivers:
    """Runs in one folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def words(self, drivers: int | str, nproc: int, *more: str, faults: str = "") -> list[str]:
        own = [f"runtime.drivers={drivers}", f"runtime.nproc={nproc}", *more]
        return [
            *WORDS,
            f"+prognostic.folder={self.folder}",
            f"+prognostic.faults={{{faults}}}",
            *own,
        ]

    def run(
        self, drivers: int | str, nproc: int, *more: str, faults: str = ""
    ) -> application.Outcome:
        words = self.words(drivers, nproc, *more, faults=faults)
        done = run_main(*words, folder=self.folder, deadline=200, **self.environment)
        assert not left_after(30.0)
        return done

    def values(self) -> dict[str, np.ndarray]:
        with xr.open_zarr(self.folder / "out.zarr") as store:
            return {str(name): array.values for name, array in store.items()}

    def assert_equal(self, expected: dict[str, np.ndarray]) -> None:
        values = self.values()
        assert values.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(values[name], array, err_msg=name)


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[Drivers]:
    with leaving_nothing(30) as environment:
        yield Drivers(tmp_path, environment)


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The values of a run in one process."""
    with leaving_nothing() as environment:
        run = Drivers(tmp_path_factory.mktemp("one"), environment)
        done = run.run(1, 1)
        assert done.status == 0, done.err
        values = run.values()
        marks = [array for name, array in values.items() if name.endswith("_complete")]
        assert marks
        assert all(array.all() for array in marks)
        return values


@pytest.mark.parametrize(("number", "nproc"), [(2, 3), (3, 3)])
def test_the_bytes_are_those_of_one_process(
    drivers: Drivers, one_process: dict[str, np.ndarray], number: int, nproc: int
) -> None:
    done = drivers.run(number, nproc)
    assert done.status == 0, done.err
    assert f"on {number} drivers" in done.out
    if number == nproc:
        assert "Moved 0 B to the workers and 0 B back" in done.out
    drivers.assert_equal(one_process)


@pytest.mark.parametrize("fault", ["kill", "stop"])
@pytest.mark.parametrize("nproc", [3, 4])
def test_others_continue_the_forecasts_of_a_lost_driver(
    drivers: Drivers, one_process: dict[str, np.ndarray], fault: str, nproc: int
) -> None:
    slow = ("+prognostic.seconds=0.2", "runtime.liveness_timeout=5")
    done = drivers.run(3, nproc, *slow, faults=f"1@18: {fault}, 2@18: {fault}")
    assert done.status == 0, done.err
    assert list(drivers.folder.glob("fault *"))
    words = "was lost" if nproc == 3 else "others continue its forecasts"
    assert words in done.out + done.err
    drivers.assert_equal(one_process)


def test_a_driver_may_be_lost_after_its_last_step(
    drivers: Drivers, one_process: dict[str, np.ndarray]
) -> None:
    """When tasks still wait for its states."""
    slow = ("+diagnostic.faulty._target_=testing.faulty.Faulty", "+diagnostic.faulty.faults={}")
    later = "3@24: kill later, 4@24: kill later"
    done = drivers.run(2, 3, *slow, "+diagnostic.faulty.seconds=0.5", faults=later)
    assert done.status == 0, done.err
    assert "others continue its forecasts" in done.out + done.err
    values = drivers.values()
    assert values["faulty_complete"].all()
    for name, array in one_process.items():
        np.testing.assert_array_equal(values[name], array, err_msg=name)


def test_a_lost_worker_loses_no_task(drivers: Drivers, one_process: dict[str, np.ndarray]) -> None:
    words = drivers.words(2, 4, "+prognostic.seconds=0.2")
    process = application.start(
        application.python_main(*words), drivers.folder, **drivers.environment
    )
    drivers_wait(drivers, process)
    ranks = sorted(psutil.Process(process.pid).children(recursive=True), key=lambda p: p.pid)
    workers = [p for p in ranks if "rank" in " ".join(p.cmdline()) or p.num_threads() > 16]
    workers[-1].kill()  # rank 3: rank 2 is a driver
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    assert "rank 3 was lost" in out + err
    drivers.assert_equal(one_process)


def drivers_wait(drivers: Drivers, process: application.subprocess.Popen[str]) -> None:
    from tests.faults.conftest import Faults

    Faults(drivers.folder, drivers.environment).wait_for("z850/c/*/*/*/*/*", process)


def test_a_killed_run_is_resumed_with_another_number_of_drivers(
    drivers: Drivers, one_process: dict[str, np.ndarray]
) -> None:
    words = drivers.words(2, 3, "+prognostic.seconds=0.3", "output.mode=resume")
    process = application.start(
        application.python_main(*words), drivers.folder, **drivers.environment
    )
    drivers_wait(drivers, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not left_after(30.0)  # promised
    done = drivers.run(3, 3, "+prognostic.seconds=0.3", "output.mode=resume")
    assert done.status == 0, done.err
    drivers.assert_equal(one_process)


def test_an_error_of_a_forecast_names_its_rank(drivers: Drivers) -> None:
    done = drivers.run(3, 3, faults="1@12: raise, 2@12: raise, 0@12: raise")
    assert done.status == 1
    assert "ArithmeticError: the forecast has blown up" in done.err
    assert "output.mode=resume" in done.err


def test_a_hanging_diagnostic_of_rank_0_ends_the_run(drivers: Drivers) -> None:
    """Its forecasts wait for that call, too."""
    faulty = ("+diagnostic.faulty._target_=testing.faulty.Faulty", "runtime.call_timeout=5")
    done = drivers.run(3, 3, *faulty, "+diagnostic.faulty.faults={0: sleep}")
    assert done.status == 1
    assert "runtime.call_timeout" in done.err


@pytest.mark.parametrize(("step", "call", "members", "best"), [(0.3, 0.0, 8, 4), (0.0, 0.5, 5, 1)])
def test_auto_chooses_what_the_first_steps_suggest(
    drivers: Drivers, step: float, call: float, members: int, best: int
) -> None:
    own = ("+diagnostic.faulty._target_=testing.faulty.Faulty", "+diagnostic.faulty.faults={}")
    slow = (f"+prognostic.seconds={step}", f"+diagnostic.faulty.seconds={call}")
    few = ("~diagnostic.wind_decomposition", "~diagnostic.error_growth")
    words = (f"parameters.ensemble={members}", "parameters.nsteps=6", *own, *slow, *few)
    done = drivers.run("auto", 4, *words)
    assert done.status == 0, done.err
    (line,) = [line for line in (done.out + done.err).splitlines() if "drivers=auto: " in line]
    said = "each rank runs both" if best == 4 else f"{best} of 4 ranks forecast"
    assert said in line, line
    assert all(array.all() for name, array in drivers.values().items() if "complete" in name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("runtime.drivers=4",), "runtime.drivers=4, but there are 3 rank(s)"),
        (("runtime.drivers=2", "output.shards=2"), "output.shards=2: with runtime.drivers=2"),
        (("runtime.driver=2",), "Did you mean runtime.driver"),
        (
            ("runtime.drivers=3", "diagnostic.error_growth.workers=1"),
            "diagnostic.error_growth.workers=1: with as many drivers as ranks",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    drivers: Drivers, words: tuple[str, ...], said: str
) -> None:
    done = drivers.run(1, 3, *words)
    assert done.status == 1
    assert said in done.err
    assert not (drivers.folder / "out.zarr").exists()
