"""main.py over any number of ranks against a plain loop that uses nothing but Earth2Studio."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from distinf.forecast.prognostic import rollout
from distinf.forecast.restart import is_restartable
from testing import packages
from tests.earth2studio.conftest import TIME, Run

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

Fields = dict[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain_loop(prognostic: Any, diagnostics: list[Any], source: Any, nsteps: int) -> Fields:
    """Forecast and diagnose in one process: [lead_time, ...] for each variable."""
    from earth2studio.data import fetch_data
    from earth2studio.utils.coords import map_coords

    wanted = prognostic.input_coords()
    times = np.array([np.datetime64(TIME, "ns")])
    x, coords = fetch_data(source, times, wanted["variable"], wanted["lead_time"])
    x, coords = map_coords(x, coords, wanted)
    states = prognostic.create_iterator(x, coords)
    fields: dict[str, list[np.ndarray]] = {}
    for _ in range(nsteps + 1):
        x, coords = next(states)
        for diagnostic in diagnostics:
            with torch.inference_mode():
                y, y_coords = diagnostic(*map_coords(x, coords, diagnostic.input_coords()))
            axis = list(y_coords).index("variable")
            for i, name in enumerate(y_coords["variable"]):
                fields.setdefault(str(name), []).append(y.numpy().take(i, axis)[0, 0].copy())
    return {name: np.stack(steps) for name, steps in fields.items()}


def assert_same(path: Path, expected: Fields) -> None:
    with xr.open_zarr(path) as there:
        for name, values in expected.items():
            np.testing.assert_array_equal(there[name].values[0], values, err_msg=name)


@pytest.fixture(scope="module")
def forecast(made: dict[str, Path]) -> Fields:
    from earth2studio.data import DataArrayFile
    from earth2studio.models.auto import Package
    from earth2studio.models.dx import ClimateNet, CorrDiff, DerivedWS
    from earth2studio.models.px import FCN

    diagnostics = [
        ClimateNet.load_model(Package(str(made["climatenet"]))),
        CorrDiff.load_model(Package(str(made["corrdiff"]))),
        packages.small_precipitation(),
        DerivedWS([850]),
    ]
    prognostic = FCN.load_model(Package(str(made["fcn"])))
    return plain_loop(prognostic, diagnostics, DataArrayFile(str(made["fields"])), nsteps=1)


@pytest.mark.parametrize("nproc", [1, 3])
def test_fcn_and_four_diagnostics(
    nproc: int, made: dict[str, Path], forecast: Fields, run: Run, tmp_path: Path
) -> None:
    done = run(
        f"prognostic.package={made['fcn']}",
        "diagnostic=[climatenet,corrdiff,wind_speed]",
        f"diagnostic.climatenet.package={made['climatenet']}",
        f"diagnostic.corrdiff.package={made['corrdiff']}",
        "+diagnostic.precipitation._target_=testing.packages.small_precipitation",
        "data=file",
        f"data.path={made['fields']}",
        "parameters.nsteps=1",
        f"runtime.nproc={nproc}",
        "runtime.start_timeout=300",
    )
    assert done.status == 0, done.err
    assert set(forecast) == {
        *("climnet_bg", "climnet_tc", "climnet_ar"),
        *("precipitation_rate", "gust", "tp", "ws850"),
    }
    assert_same(tmp_path / "diagnostic_distributed.zarr", forecast)


@pytest.fixture(scope="module")
def gusts(made: dict[str, Path]) -> Fields:
    from collections import OrderedDict

    from earth2studio.data import DataArrayFile
    from earth2studio.models.auto import Package
    from earth2studio.models.dx import WindgustAFNO
    from earth2studio.models.px import Persistence

    domain = OrderedDict(lat=packages.LAT, lon=packages.LON)
    prognostic = Persistence(packages.GUST_VARIABLES, domain)
    diagnostic = WindgustAFNO.load_model(Package(str(made["wind_gust"])))
    return plain_loop(prognostic, [diagnostic], DataArrayFile(str(made["fields"])), nsteps=2)


@pytest.mark.parametrize("nproc", [1, 3])
def test_persistence_and_wind_gust(
    nproc: int, made: dict[str, Path], gusts: Fields, run: Run, tmp_path: Path
) -> None:
    done = run(
        "prognostic=persistence",
        f"prognostic.variable=[{','.join(packages.GUST_VARIABLES)}]",
        "diagnostic=wind_gust",
        f"diagnostic.wind_gust.package={made['wind_gust']}",
        "data=file",
        f"data.path={made['fields']}",
        "parameters.nsteps=2",
        f"runtime.nproc={nproc}",
        "runtime.start_timeout=300",
    )
    assert done.status == 0, done.err
    assert list(gusts) == ["fg10m"]
    assert_same(tmp_path / "diagnostic_distributed.zarr", gusts)


@pytest.mark.parametrize("name", ["FCN", "Persistence"])
def test_models_that_bind_a_checkpoint_state_restart_from_any_step(
    name: str, made: dict[str, Path]
) -> None:
    from earth2studio.data import DataArrayFile
    from earth2studio.models.auto import Package
    from earth2studio.models.px import FCN, Persistence

    prognostic: Any = FCN.load_model(Package(str(made["fcn"])))
    if name == "Persistence":
        wanted = prognostic.input_coords()
        grid = OrderedDict((key, wanted[key]) for key in ("lat", "lon"))
        prognostic = Persistence(["t2m", "u10m"], grid)
    assert is_restartable(prognostic)
    time = np.array([np.datetime64(TIME)])
    source = DataArrayFile(str(made["fields"]))
    states = list(rollout(prognostic, source, time[0], nsteps=2))
    x, coords = states[1]
    again = prognostic.create_iterator(x.clone(), coords.copy())
    for state, step in zip(states[1:], again, strict=False):
        assert torch.equal(state[0], step[0])
        assert state[1]["lead_time"] == step[1]["lead_time"]
