"""The decomposition against analytic fields, on every kind of grid."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_harmonics.quadrature import legendre_gauss_weights

from distinf.models import WindDecomposition
from distinf.models.sphere import EARTH_RADIUS, SphereGrid

NLAT, NLON = 73, 144
GRIDS = {
    "poles": np.linspace(90, -90, NLAT),
    "no south pole": np.linspace(90, -90, NLAT)[:-1],
    "no north pole": np.linspace(90, -90, NLAT)[1:],
    "no poles": np.linspace(90, -90, NLAT)[1:-1],
    "midpoints": np.linspace(90, -90, NLAT)[:-1] - 90 / (NLAT - 1),
    "gauss": np.degrees(np.arcsin(np.asarray(legendre_gauss_weights(NLAT, -1, 1)[0])))[::-1],
    "float32": np.linspace(90, -90, NLAT).astype(np.float32),
}


def analytic(lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Wind and potentials in closed form.

    Streamfunction: the Rossby-Haurwitz wave 4 of Williamson et al. (1992), case 6. Velocity
    potential: the harmonic cos(lat)^2 sin(lat) cos(2 lon) of degree 3.
    """
    a, w, k, r = EARTH_RADIUS, 7.848e-6, 7.848e-6, 4
    p, q = np.meshgrid(np.radians(lat), np.radians(lon), indexing="ij")
    c, s = np.cos(p), np.sin(p)
    u = a * w * c + a * k * c ** (r - 1) * (r * s**2 - c**2) * np.cos(r * q)
    v = -a * k * r * c ** (r - 1) * s * np.sin(r * q)
    psi = -(a**2) * w * s + a**2 * k * c**r * s * np.cos(r * q)
    vo = 2 * w * s - k * s * c**r * (r**2 + 3 * r + 2) * np.cos(r * q)
    size = 0.1 * a**2 * k
    chi = size * c**2 * s * np.cos(2 * q)
    u = u - 2 * size / a * c * s * np.sin(2 * q)
    v = v + size / a * (c**3 - 2 * c * s**2) * np.cos(2 * q)
    return np.stack([u, v]), {"vo": vo, "d": -12 / a**2 * chi, "strf": psi, "vp": chi}


def decompose(
    lat: np.ndarray, lon: np.ndarray, wind: np.ndarray, model: WindDecomposition | None = None
) -> dict[str, np.ndarray]:
    coords = OrderedDict(
        time=np.array([np.datetime64("2000-01-01")]),
        variable=np.array(["u850", "v850"]),
        lat=lat,
        lon=lon,
    )
    model = model or WindDecomposition()
    y, out = model(torch.from_numpy(wind.astype(np.float32))[None], coords)
    assert y.dtype == torch.float32
    assert y.shape == (1, 4, len(lat), len(lon))
    return {
        str(n).removesuffix("850"): f.numpy() for n, f in zip(out["variable"], y[0], strict=True)
    }


def check(found: dict[str, np.ndarray], true: dict[str, np.ndarray], tolerance: float) -> None:
    for name, field in true.items():
        error = (
            np.abs(found[name] - field).max()
            / np.abs(true["vo" if name in "vod" else "strf"]).max()
        )
        assert error < tolerance, (name, error)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("first", [0.0, -180.0, 91.25])
@pytest.mark.parametrize("rows", list(GRIDS))
def test_agrees_with_analytic_fields(rows: str, first: float, flip: bool) -> None:
    lat = GRIDS[rows][::-1].copy() if flip else GRIDS[rows]
    lon = first + np.arange(NLON) * 360 / NLON
    wind, true = analytic(lat, lon)
    check(decompose(lat, lon, wind), true, 2e-4 if "no" in rows else 2e-5)


@pytest.mark.parametrize("rows", [720, 721])
def test_full_size_grids(rows: int) -> None:
    lat, lon = np.linspace(90, -90, 721)[:rows], np.arange(1440) * 0.25
    wind, true = analytic(lat, lon)
    check(decompose(lat, lon, wind, WindDecomposition(lmax=85)), true, 1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(0, 6), st.sampled_from(["poles", "midpoints", "gauss"]))
def test_solid_rotations_and_single_waves(degree: int, turn: int, rows: str) -> None:
    """A streamfunction's wind has no divergence, and rotating the grid rotates the result."""
    lat, lon = GRIDS[rows], np.arange(NLON) * 360 / NLON
    p, q = np.meshgrid(np.radians(lat), np.radians(lon), indexing="ij")
    # psi = cos(lat)^n cos(n lon): a sectoral harmonic, vorticity -n (n + 1) psi / a^2.
    n = degree
    psi = np.cos(p) ** n * np.cos(n * q)
    u = n * np.cos(p) ** (n - 1) * np.sin(p) * np.cos(n * q)
    v = -n * np.cos(p) ** (n - 1) * np.sin(n * q)
    found = decompose(lat, lon, np.stack([u, v]))
    scale = n * (n + 1) / EARTH_RADIUS
    np.testing.assert_allclose(found["vo"], -scale * psi, atol=2e-4 * scale)
    np.testing.assert_allclose(found["d"], 0, atol=2e-4 * scale)
    np.testing.assert_allclose(found["strf"], EARTH_RADIUS * psi, atol=2e-5 * EARTH_RADIUS)
    turned = decompose(lat, lon, np.roll(np.stack([u, v]), turn, axis=-1))
    np.testing.assert_allclose(turned["vo"], np.roll(found["vo"], turn, -1), atol=1e-4 * scale)


def test_levels_and_bytes_do_not_depend_on_batching() -> None:
    lat, lon = GRIDS["poles"], np.arange(NLON) * 2.5
    wind, _ = analytic(lat, lon)
    model = WindDecomposition(levels=["10m", 500])
    assert list(model.input_coords()["variable"]) == ["u10m", "v10m", "u500", "v500"]
    coords = OrderedDict(
        time=np.array(["2000-01-01", "2000-01-02"], dtype="datetime64[ns]"),
        lead_time=np.array([np.timedelta64(0, "h")]),
        variable=model.input_coords()["variable"],
        lat=lat,
        lon=lon,
    )
    one = torch.from_numpy(np.concatenate([wind, 2 * wind]).astype(np.float32))
    y, out = model(torch.stack([one, 3 * one])[:, None], coords)
    assert list(out["variable"][[0, 7]]) == ["vo10m", "vp500"]
    assert list(out) == list(coords)
    alone = decompose(lat, lon, wind)
    assert np.array_equal(y[0, 0, 0].numpy(), alone["vo"])
    np.testing.assert_allclose(y[1, 0, 6], 6 * alone["strf"], atol=1e3)


def test_tells_units() -> None:
    told = WindDecomposition(levels=[500, "10m"]).variable_attributes()
    assert told["vo500"]["units"] == "s-1"
    assert told["strf10m"] == {
        "units": "m2 s-1",
        "long_name": "streamfunction at 10m",
        "standard_name": "atmosphere_horizontal_streamfunction",
    }


@pytest.mark.parametrize(
    ("lat", "lon", "words"),
    [
        (np.linspace(60, -60, 49), np.arange(144) * 2.5, "do not cover the globe"),
        (np.linspace(90, -90, 73) ** 3 / 8100, np.arange(144) * 2.5, "neither equally spaced nor"),
        (np.linspace(90, -90, 73), np.arange(100) * 2.5, "not a full circle"),
        (np.linspace(90, -90, 73), np.linspace(0, 360, 145), "not a full circle"),
    ],
)
def test_other_grids_are_refused(lat: np.ndarray, lon: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SphereGrid.from_coords(lat, lon)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="levels"):
        WindDecomposition(levels=[])
    lat, lon = GRIDS["poles"], np.arange(NLON) * 2.5
    with pytest.raises(ValueError, match=r"lmax=99 is too large .* up to 37"):
        decompose(lat, lon, np.zeros((2, NLAT, NLON)), WindDecomposition(lmax=99))
