"""Members, dates, diagnostics and a chain in one store, against a plain loop of Earth2Studio.

The loop takes from this project only the seed of each draw.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from distinf.seeds import seeded, task_seed
from testing import packages
from tests.earth2studio.conftest import TIME, Run

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

TIMES = np.array([TIME, "2023-06-02T00:00:00"], "M8[ns]")
VARIABLES = ["t850", "q850", "u850", "v850", "t2m", "msl"]
LAT, LON = np.linspace(90, -90, 32, endpoint=False), np.linspace(0, 360, 64, endpoint=False)
MEMBERS = 3
Fields = dict[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fields") / "fields.nc"
    rng = np.random.default_rng(1)
    mean = np.array([280, 0.005, 0, 0, 285, 101000], "float32")[:, None, None]
    data = mean * (1 + 0.01 * rng.random((2, 6, 32, 64), "float32")) + np.float32(0.001)
    coords = {"time": TIMES, "variable": VARIABLES, "lat": LAT, "lon": LON}
    xr.DataArray(data, coords, list(coords), "fields").to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def expected(fields: Path) -> Fields:
    """[ensemble, time, lead_time, lat, lon] of each variable, one forecast after the other."""
    from earth2studio.data import DataArrayFile, fetch_data
    from earth2studio.models.dx import DerivedRH, DerivedVPD, DerivedWS
    from earth2studio.models.px import Persistence
    from earth2studio.perturbation import Gaussian
    from earth2studio.utils.coords import map_coords

    prognostic = Persistence(VARIABLES, OrderedDict(lat=LAT, lon=LON))
    humidity, deficit, speed = DerivedRH([850]), DerivedVPD([850]), DerivedWS([850])
    wanted = prognostic.input_coords()
    made: dict[str, dict[tuple[int, int, int], np.ndarray]] = {}
    for e, i in np.ndindex(MEMBERS, len(TIMES)):
        source = DataArrayFile(str(fields))
        x, coords = fetch_data(source, TIMES[i : i + 1], wanted["variable"], wanted["lead_time"])
        x, coords = map_coords(x, coords, wanted)
        coords = OrderedDict(ensemble=np.array([e]), **coords)
        noise = Gaussian(0.01, seed=task_seed(7, "perturbation", TIMES[i], None, e))
        x, coords = noise(x.unsqueeze(0), coords)
        states = prognostic.create_iterator(x, coords)
        for j in range(4):
            x, coords = next(states)
            rh, _ = humidity(*map_coords(x, coords, humidity.input_coords()))
            t, t_coords = map_coords(x, coords, OrderedDict(variable=np.array(["t850"])))
            both = OrderedDict(t_coords, variable=np.array(["t850", "r850"]))
            results = {
                "r850": rh,
                "vapour": deficit(torch.cat([t, rh], 3), both)[0],
                "ws850": speed(*map_coords(x, coords, speed.input_coords()))[0],
                **{v: x[:, :, :, [VARIABLES.index(v)]] for v in ("t2m", "msl")},
            }
            for name, y in results.items():
                made.setdefault(name, {})[e, i, j] = y[0, 0, 0, 0].numpy().copy()
    shape = (MEMBERS, len(TIMES), 4)
    return {
        name: np.array([steps[index] for index in np.ndindex(shape)]).reshape(*shape, 32, 64)
        for name, steps in made.items()
    }


@pytest.mark.parametrize(
    ("nproc", "batch", "drivers"), [(1, 2, 1), (3, 6, 1), (3, 1, 2), (3, 2, 3), (3, 1, "auto")]
)
def test_every_slice_is_that_of_a_plain_loop(
    nproc: int,
    batch: int,
    drivers: int | str,
    fields: Path,
    expected: Fields,
    run: Run,
    tmp_path: Path,
) -> None:
    done = run(
        "prognostic=persistence",
        f"prognostic.variable=[{','.join(VARIABLES)}]",
        "prognostic.nlat=32",
        "prognostic.nlon=64",
        "data=file",
        f"data.path={fields}",
        "diagnostic=[wind_speed,relative_humidity,vapor_pressure_deficit]",
        "diagnostic.vapor_pressure_deficit.after=relative_humidity",
        "diagnostic.vapor_pressure_deficit.rename={vpd850:vapour}",
        "perturbation.noise_amplitude=0.01",
        "parameters.time={start:2023-06-01,end:2023-06-02,interval:1d}",
        f"parameters.ensemble={MEMBERS}",
        "parameters.nsteps=3",
        "output.prognostic_variables=[t2m,msl]",
        "runtime.seed=7",
        f"runtime.batch={batch}",
        f"runtime.drivers={drivers}",
        f"runtime.nproc={nproc}",
        "runtime.start_timeout=300",
    )
    assert done.status == 0, done.err
    with xr.open_zarr(tmp_path / "diagnostic_distributed.zarr") as there:
        assert set(expected) <= set(there)
        for name, values in expected.items():
            assert there[name].dims == ("ensemble", "time", "lead_time", "lat", "lon")
            np.testing.assert_array_equal(there[name].values, values, err_msg=name)
        np.testing.assert_array_equal(there["time"], TIMES)
        assert all(there[name].values.all() for name in there if str(name).endswith("_complete"))


def test_a_diffusion_model_draws_the_same_on_any_worker(
    made: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    from earth2studio.data import DataArrayFile, fetch_data
    from earth2studio.models.auto import Package
    from earth2studio.models.dx import CorrDiff
    from earth2studio.utils.coords import map_coords

    package = packages.corrdiff(tmp_path / "corrdiff", seed=None)
    names = packages.CORRDIFF_INPUTS
    done = run(
        "prognostic=persistence",
        f"prognostic.variable=[{','.join(names)}]",
        "data=file",
        f"data.path={made['fields']}",
        "diagnostic=corrdiff",
        f"diagnostic.corrdiff.package={package}",
        "parameters.nsteps=3",
        "runtime.nproc=3",
        "runtime.start_timeout=300",
    )
    assert done.status == 0, done.err
    model: Any = CorrDiff.load_model(Package(str(package)))
    zero = np.array([0], "m8[ns]")
    x, coords = fetch_data(DataArrayFile(str(made["fields"])), TIMES[:1], np.array(names), zero)
    x, coords = map_coords(x, coords, model.input_coords())
    with xr.open_zarr(tmp_path / "diagnostic_distributed.zarr") as there:
        samples = there["gust"].values[0]
        assert there["gust"].dims == ("time", "lead_time", "sample", "ilat", "ilon")
        for j, lead in enumerate(there["lead_time"].values):
            own = OrderedDict(coords, lead_time=np.array([lead]))
            with torch.inference_mode(), seeded(task_seed(0, "corrdiff", TIMES[0], lead)):
                y, y_coords = model(x.clone(), own)
            axis = list(y_coords).index("variable")
            gust = list(y_coords["variable"]).index("gust")
            np.testing.assert_array_equal(y.numpy().take(gust, axis)[0, 0], samples[j])
    assert len({step.tobytes() for step in samples}) == 4
