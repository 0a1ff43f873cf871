"""The growth rate of errors against flows whose growth is known, and as a diagnostic model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch

from distinf.coords import Coords
from distinf.models import ErrorGrowth, GalewskyJet, ShallowWater
from distinf.models.error_growth import _Ensemble
from distinf.models.sphere import EARTH_OMEGA, EARTH_RADIUS, regular_grid
from distinf.seeds import seeded

NLAT, NLON = 128, 256
LAT, LON = regular_grid(NLAT, NLON)
WEIGHT = np.cos(np.radians(LAT))


def coords_of(nlat: int = NLAT, nlon: int = NLON) -> Coords:
    lat, lon = regular_grid(nlat, nlon)
    return OrderedDict(
        time=np.array([np.datetime64("2000-01-01")]),
        variable=np.array(["u850", "v850", "z850"]),
        lat=lat,
        lon=lon,
    )


def rate(model: ErrorGrowth, state: np.ndarray, seed: int = 0) -> np.ndarray:
    with seeded(seed):
        y, coords = model(torch.from_numpy(state.astype(np.float32))[None], coords_of())
    assert y.shape == (1, 1, NLAT, NLON)
    assert coords["variable"].tolist() == ["error_growth850"]
    return y[0, 0].numpy()


def area_mean(field: np.ndarray) -> float:
    return float(np.average(field.mean(axis=-1), weights=WEIGHT))


def jet() -> np.ndarray:
    source = GalewskyJet(NLAT, NLON)
    return np.asarray(source(np.datetime64("2000-01-01"), ["u850", "v850", "z850"]).values[0])


def steady_flow() -> np.ndarray:
    """Williamson et al. (1992), J. Comput. Phys. 102, 211-224, case 2."""
    lat = np.repeat(np.radians(LAT)[:, None], NLON, axis=1)
    speed = 2 * np.pi * EARTH_RADIUS / (12 * 86400)
    u = speed * np.cos(lat)
    z = 2.94e4 - (EARTH_RADIUS * EARTH_OMEGA * speed + speed**2 / 2) * np.sin(lat) ** 2
    return np.stack([u, 0 * u, z])


@pytest.fixture(scope="module")
def states() -> list[np.ndarray]:
    """Four days from the unstable jet, every 6 h."""
    model = ShallowWater(NLAT, NLON)
    own = model.input_coords()
    del own["batch"]
    coords: Coords = OrderedDict(time=np.array([np.datetime64("2000-01-01")]), **own)
    x = torch.from_numpy(jet().astype(np.float32))[None, None]
    return [y[0, 0].numpy().copy() for y, _ in islice(model.create_iterator(x, coords), 17)]


@pytest.mark.slow
def test_errors_grow_as_the_eddies_of_the_forecast_do(states: list[np.ndarray]) -> None:
    """Between days 2 and 4 the eddies of the jet grow exponentially, by 1.26 per day.

    Measured along the jet: 1.20 and 1.11 per day at days 2 and 3, and at most 1.5 and 1.45.
    """
    band = (LAT > 20) & (LAT < 80)

    def eddies(state: np.ndarray) -> float:
        wind = (state[:2] - state[:2].mean(axis=-1, keepdims=True)).astype(np.float64)
        return float(np.sqrt((wind**2).sum(axis=0).mean(axis=-1)[band] @ WEIGHT[band]))

    halves = [np.log(eddies(states[b]) / eddies(states[a])) for a, b in ((8, 12), (12, 16))]
    grown = sum(halves) / 2
    assert halves == pytest.approx([grown, grown], rel=0.1)  # it is exponential
    assert grown == pytest.approx(1.26, rel=0.05)
    model = ErrorGrowth()
    for day in (2, 3):
        rates = [rate(model, states[4 * day], seed) for seed in (0, 1)]
        found = (rates[0] + rates[1]) / 2
        along = found.mean(axis=-1)
        peak = LAT[along.argmax()]
        print(f"day {day}: {along.max():.2f} along {peak:.0f}, up to {found.max():.2f}")
        assert 40 < peak < 52
        assert 0.85 * grown < along.max() < 1.15 * grown
        assert found.max() < 1.5 * grown
        assert np.abs(along[LAT < -20]).max() < 0.3  # no wind: nothing grows


@pytest.mark.parametrize("seed", range(3))
def test_in_a_steady_flow_nothing_grows(seed: int) -> None:
    found = rate(ErrorGrowth(), steady_flow(), seed)
    print(f"{found.min():.2f} to {found.max():.2f}, mean {area_mean(found):.2f}")
    assert -0.05 < area_mean(found) < 0.05
    assert found.max() < 0.45  # of a random number of independent places


def test_the_rate_does_not_depend_on_the_size_of_the_errors() -> None:
    state = jet()
    small, large = (rate(ErrorGrowth(amplitude=size), state) for size in (0.05, 0.4))
    assert np.abs(small - large).max() < 0.1


def test_it_depends_on_the_seed_and_on_nothing_else() -> None:
    state, model = jet(), ErrorGrowth(members=2, hours=6)
    first = rate(model, state, seed=5)
    assert np.array_equal(first, rate(model, state, seed=5))
    assert np.array_equal(first, rate(ErrorGrowth(members=2, hours=6), state, seed=5))
    assert not np.array_equal(first, rate(model, state, seed=6))


def test_perturbations_are_as_stated() -> None:
    ensemble = _Ensemble(NLAT, NLON, 43)
    state = torch.from_numpy(jet().astype(np.float32))
    torch.manual_seed(0)
    states = ensemble.perturbed(state, 200, 0.1)
    assert torch.equal(states[0], state)
    assert torch.equal(states[1:, 2], state[2].expand(200, -1, -1))
    wind = states[1:, :2] - state[:2]
    size = ensemble.mean(wind.double().square().sum(dim=1).float()).sqrt()
    assert size.numpy() == pytest.approx(np.full(200, 0.1), rel=1e-3)
    rotation, divergence = ensemble.solver._vector(wind).unbind(dim=1)
    # Coefficients of orders above 0 stand for two.
    power = (rotation.abs().square() * torch.tensor([1.0] + 42 * [2.0])).sum(dim=-1).mean(dim=0)
    degree = torch.arange(43)
    kinetic = (power * degree * (degree + 1)).numpy()
    assert kinetic[1:21] == pytest.approx(np.full(20, kinetic[1:21].mean()), rel=0.25)
    assert max(kinetic[0], kinetic[21:].max()) < 1e-3 * kinetic[1]
    assert divergence.abs().max() < 1e-3 * rotation.abs().max()
    # Any place is like any other.
    place = wind.square().sum(dim=1).mean(dim=(0, -1)).sqrt().numpy()
    assert place == pytest.approx(np.full(NLAT, 0.1), rel=0.25)


def test_a_state_that_is_not_finite_gives_nan() -> None:
    state = jet()
    state[1, 3, 4] = np.inf
    assert np.isnan(rate(ErrorGrowth(), state)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": 0}, "members=0"),
        ({"amplitude": 0}, "amplitude=0"),
        ({"hours": float("inf")}, "hours=inf"),
        ({"lmax": 1}, "lmax=1: must be at least 2"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ErrorGrowth(**options)  # type: ignore[arg-type]


def turned(coords: Coords) -> None:
    coords["lat"] = coords["lat"][::-1]


def regional(coords: Coords) -> None:
    coords["lon"] = coords["lon"][:20]


def renamed(coords: Coords) -> None:
    coords["variable"] = np.array(["u500", "v500", "z500"])


@pytest.mark.parametrize(
    ("change", "words"),
    [(turned, "rows from 90 to -90"), (regional, "eastward from 0"), (renamed, "variable")],
)
def test_other_states_are_refused(change: Callable[[Coords], None], words: str) -> None:
    coords = coords_of()
    change(coords)
    with pytest.raises(ValueError, match=words):
        ErrorGrowth().output_coords(coords)


def test_a_grid_too_coarse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lmax=43 .* 64 x 128 points: at most 22"):
        ErrorGrowth(lmax=43).output_coords(coords_of(64, 128))


def test_a_coarse_grid_gets_coarse_forecasts() -> None:
    coords = coords_of(32, 64)
    source = GalewskyJet(32, 64)
    state = source(np.datetime64("2000-01-01"), coords["variable"].tolist()).values
    y, _ = ErrorGrowth(hours=1)(torch.from_numpy(state.astype(np.float32)), coords)
    assert torch.isfinite(y).all()
