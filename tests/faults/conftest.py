"""Run main.py with a faulty diagnostic; whatever happens, nothing may be left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from testing import application
from testing.preloaded import left_after, run_main
from testing.programs import missing
from tests.ranks.conftest import leaving_nothing

STEPS = 5
SMALL = (
    *("prognostic.nlat=32", "prognostic.nlon=64", "recipe=diagnostic"),
    *("~diagnostic.wind_decomposition", "~diagnostic.error_growth", f"parameters.nsteps={STEPS}"),
    "+diagnostic.faulty._target_=testing.faulty.Faulty",
    "parameters.output_path=out.zarr",
)


class Faults:
    """Runs in one folder, with one environment that marks their processes."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def words(self, faults: str, *overrides: str) -> list[str]:
        return [
            *SMALL,
            f"+diagnostic.faulty.faults={{{faults}}}",
            f"+diagnostic.faulty.folder={self.folder}",
            *overrides,
        ]

    def start(self, command: list[str]) -> application.subprocess.Popen[str]:
        return application.start(command, self.folder, **self.environment)

    def run(
        self,
        faults: str,
        *overrides: str,
        deadline: float = 200,
        meanwhile: Callable[[int], None] = lambda pid: None,
    ) -> application.Outcome:
        words = self.words(faults, *overrides)
        own: dict[str, Any] = {"meanwhile": meanwhile, **self.environment}
        done = run_main(*words, folder=self.folder, deadline=deadline, **own)
        assert not left_after(30.0)  # promised for whatever happens
        return done

    def mpirun(self, options: list[str], words: list[str]) -> list[str]:
        """Command that starts ranks with mpirun; skips the test where there is none."""
        if lacking := missing("mpirun"):
            pytest.skip(lacking)
        own = ["mpirun", "--allow-run-as-root", "--oversubscribe", *options]
        return [*own, *application.python_main(*words)]

    def complete(self) -> list[int]:
        """Lead times (in steps) that are marked complete; each must hold data."""
        with xr.open_zarr(self.folder / "out.zarr") as store:
            marks = store["faulty_complete"].values[0]
            there = store["twice"].notnull().all(("lat", "lon")).values[0]
        assert (there[marks]).all()
        return [int(step) for step in np.flatnonzero(marks)]

    def values(self) -> np.ndarray:
        with xr.open_zarr(self.folder / "out.zarr") as store:
            return store["twice"].values

    def wait_for_a_step(self, process: application.subprocess.Popen[str]) -> None:
        """Until one step is marked complete."""
        self.wait_for("faulty_complete/c/*/*", process)

    def wait_for(
        self, files: str, process: application.subprocess.Popen[str] | None = None
    ) -> None:
        """Until the store has one of these files."""
        deadline = time.monotonic() + 120
        while not list((self.folder / "out.zarr").glob(files)):
            assert process is None or process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Faults]:
    with leaving_nothing(30) as environment:  # promised for whatever happens
        yield Faults(tmp_path, environment)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The values of a run without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with leaving_nothing() as environment:
        run = Faults(folder, environment)
        done = run.run("", "runtime.nproc=1")
        assert done.status == 0, done.err
        return run.values()


Undisturbed = Callable[[], np.ndarray]
