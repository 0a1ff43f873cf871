"""Selection compared with a slow search by label, on grids of every kind; and what it refuses."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import event, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from distinf.coords import check_covered, plan, plan_key
from distinf.diagnostics.chain import Chain, Link
from distinf.errors import ConfigError
from distinf.forecast import check_initial, rollout
from distinf.inference import arguments as arguments_module
from distinf.inference.arguments import Arguments
from recipes.shared.checks import check_models

VARIABLE = np.array(["t2m"])


@st.composite
def axes(draw, key):
    """One axis: global or a part, from 0 or -180, offset, reversed, turned, with gaps, cut."""
    step = draw(st.sampled_from([0.25, 1.0, 2.5, 10.0, 45.0]))
    count = draw(st.integers(1, 12))
    if key == "lat":
        first = draw(st.sampled_from([-90.0, -30.0, 0.0, 40.0]))
        values = first + step * np.arange(count)
        values = values[values <= 90]
    else:
        first = draw(st.sampled_from([-180.0, -20.0, 0.0, 170.0, 350.0]))
        values = first + step * np.arange(min(count, int(360 / step)))
        if draw(st.booleans()):
            values = np.where(values >= 360, values - 360, values)
    values = values + draw(st.sampled_from([0.0, 0.0, step / 2, step / 3, 3 * step]))
    if draw(st.booleans()):
        values = values[::-1]
    if len(values) > 2 and draw(st.booleans()):  # a gap
        values = np.delete(values, draw(st.integers(1, len(values) - 2)))
    if draw(st.booleans()):
        values = values[draw(st.permutations(range(len(values))))]
    return values.astype(draw(st.sampled_from([np.float32, np.float64])))


def distance(key, a, b):
    off = abs(float(a) - float(b))
    if key == "lon":
        off %= 360
        off = min(off, 360 - off)
    return off


def spacing(key, axis, i):
    """Distance of a point to the nearest other one; 0 if there is none."""
    others = [distance(key, axis[i], other) for other in axis]
    others = [off for off in others if off > 1e-3]
    return min(others, default=0.0)


def find(key, have, value, step):
    """Smallest distance of any label, and the longest that is allowed there."""
    offs = [distance(key, label, value) for label in have]
    nearest = min(offs)
    reach = max(
        max(spacing(key, have, i), step) for i, off in enumerate(offs) if off <= nearest + 2e-4
    )
    least = min(
        max(spacing(key, have, i), step) for i, off in enumerate(offs) if off <= nearest + 2e-4
    )
    return nearest, least, reach


def coded(lat, lon):
    """A state whose values tell where they lie."""
    x = torch.from_numpy(lat.astype(float))[:, None] * 1000 + torch.from_numpy(lon.astype(float))
    return x[None], OrderedDict(variable=VARIABLE, lat=lat, lon=lon)


@settings(max_examples=400)
@given(st.data())
def test_each_value_lies_where_its_label_says_or_the_grid_is_refused(data):
    lat, lon = data.draw(axes("lat")), data.draw(axes("lon"))
    wanted = OrderedDict(lat=data.draw(axes("lat")), lon=data.draw(axes("lon")))
    if data.draw(st.booleans()):
        wanted["lat"] = lat
    x, coords = coded(lat, lon)
    allowed = refused = True
    for key, have in (("lat", lat), ("lon", lon)):
        for j, value in enumerate(wanted[key]):
            nearest, least, reach = find(key, have, value, spacing(key, wanted[key], j))
            allowed = allowed and nearest <= reach + 3e-4
            refused = refused and nearest <= least - 3e-4
    try:
        y, there = plan(coords, wanted)(x, coords)
    except ConfigError as error:
        event("refused")
        message = str(error)
    else:
        event("taken")
        message = None
    if message is not None:
        assert not refused  # something was too far
        assert "\n" not in message
        return
    assert allowed
    for key in ("lat", "lon"):
        np.testing.assert_array_equal(there[key], wanted[key])
    for i, value in enumerate(wanted["lat"]):
        for j, other in enumerate(wanted["lon"]):
            found = float(y[0, i, j])
            row = min(lat, key=lambda label: min(abs(found - float(label) * 1000 - lon)))
            column = found - float(row) * 1000
            assert (
                distance("lat", row, value)
                <= min(distance("lat", label, value) for label in lat) + 1e-3
            )
            assert (
                distance("lon", column, other)
                <= min(distance("lon", label, other) for label in lon) + 1e-3
            )


def grid(lat, lon):
    return coded(np.asarray(lat, float), np.asarray(lon, float))


def test_longitudes_wrap_in_both_directions():
    """From -180 to 180 and from 0 to 360."""
    west = np.arange(-180, 180.0)
    for have, wanted in ((west, np.arange(360.0)), (np.arange(360.0), west)):
        x, coords = grid([0.0], have)
        y, _ = plan(coords, {"lon": wanted})(x, coords)
        np.testing.assert_array_equal(y[0, 0] % 360, wanted % 360)


def test_the_grid_without_the_south_pole_serves_the_one_with_it():
    x, coords = grid(90 - 0.25 * np.arange(720), np.arange(0, 360, 90))
    y, _ = plan(coords, {"lat": 90 - 0.25 * np.arange(721)})(x, coords)
    assert y[0, -1, 0] == y[0, -2, 0] == -89750


def test_a_gaussian_grid_serves_a_regular_one_with_poles():
    nodes = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(64)[0]))[::-1]
    x, coords = grid(nodes, [0.0, 180.0])
    y, _ = plan(coords, {"lat": np.linspace(90, -90, 65)})(x, coords)
    assert y[0, 0, 0] == nodes[0] * 1000


@pytest.mark.parametrize(
    ("lat", "lon", "wanted", "words"),
    [
        (
            [50, 45, 40],
            [0, 5, 10],
            {"lat": np.linspace(90, -90, 181)},
            ["90 to -90 by 1", "50, 45"],
        ),
        ([0], np.arange(120, 180.0), {"lon": np.arange(60.0)}, ["0 to 59 by 1", "120 to 179 by 1"]),
        ([0], [*np.arange(10.0), *np.arange(50.0, 60)], {"lon": np.arange(60.0)}, ["60 points"]),
        ([10.0], [0.0], {"lat": np.array([10.5])}, ["10.5", "lat 10"]),
        ([0.0], [0.0, 1.0], {"lon": np.array([0.0, np.nan])}, ["nan"]),
        ([0.0, np.nan], [0.0], {"lat": np.array([0.5])}, ["0.5"]),
    ],
    ids=["europe", "other side", "gap", "one point", "nan", "nan in the state"],
)
def test_what_is_not_there_is_refused_with_both_grids(lat, lon, wanted, words):
    _, coords = grid(lat, lon)
    with pytest.raises(ConfigError) as caught:
        plan(coords, wanted, "diagnostic.rain")
    message = str(caught.value)
    assert "\n" not in message
    for word in ("diagnostic.rain", "the state", *words):
        assert word in message


def test_an_axis_with_nan_is_that_of_its_other_points():
    """As satellites' grids have it where they see no point of the Earth."""
    nan = float("nan")
    x, coords = grid([0.0, nan, 1.0, 2.0], [0.0])
    x[:] = torch.tensor([0.0, 7, 1, 2])[:, None]
    assert not plan(coords, {"lat": np.array([0.0, nan, 1, 2])}).indices
    y, _ = plan(coords, {"lat": np.array([2.0, 0.4])})(x, coords)
    assert y.flatten().tolist() == [2, 0]
    with pytest.raises(ConfigError, match="which lacks 5:"):
        plan(coords, {"lat": np.array([5.0])})


def test_a_dimension_of_durations_is_selected_by_value():
    x, coords = torch.tensor([0.0, 6.0]), OrderedDict(horizon=np.array([0, 6], "m8[h]"))
    assert plan(coords, {"horizon": np.array([360], "m8[m]")})(x, coords)[0].tolist() == [6]
    with pytest.raises(ConfigError, match=r"needs the horizons 3 hours, which .* 0 hours, 6 hours"):
        plan(coords, {"horizon": np.array([3], "m8[h]")})


def test_a_state_without_points_is_refused():
    with pytest.raises(ConfigError, match="needs lat 1, but the state has lat none"):
        plan(grid([], [0.0])[1], {"lat": np.array([1.0])})


@pytest.mark.parametrize("key", ["level", "hrrr_y", "sample"])
def test_other_dimensions_are_selected_by_value_alone(key):
    coords = OrderedDict([(key, np.array([1000.0, 850.0, 300.0]))])
    x = torch.tensor([1000.0, 850.0, 300.0])
    y, _ = plan(coords, {key: np.array([300, 850])})(x, coords)
    assert y.tolist() == [300, 850]
    y, _ = plan(coords, {key: np.array([300.00001], np.float32)})(x, coords)
    assert y.tolist() == [300]
    with pytest.raises(ConfigError, match=rf"needs {key} 500, but .* has {key} 1000, 850, 300"):
        plan(coords, {key: np.array([500.0])})


def test_the_same_curvilinear_grid_in_other_words():
    lat, lon = np.meshgrid(np.linspace(50, 40, 3), np.linspace(-5, 5, 4), indexing="ij")
    lat[0, 0] = np.nan
    coords = OrderedDict(variable=VARIABLE, lat=lat, lon=lon)
    assert not plan(coords, {"lat": lat.copy(), "lon": lon % 360}).indices
    with pytest.raises(ConfigError, match="another grid: lon"):
        plan(coords, {"lat": lat, "lon": lon + 1})


def test_interpolation_stays_inside_the_grid():
    """As for StormCast's conditioning, on curvilinear points."""
    lat, lon = np.meshgrid(np.linspace(50, 40, 11), np.linspace(-5, 5, 11), indexing="ij")
    inside = {"lat": np.arange(55.0, 35, -1), "lon": np.arange(350.0, 371)}
    check_covered(inside, lat, lon, "the prognostic", "the data")
    curved = {"lat": lat, "lon": lon % 360}
    check_covered(curved, np.linspace(49, 41, 5), np.linspace(-4, 4, 5), "p", "d")
    for wrong in (
        {"lat": np.arange(48.0, 35, -1), "lon": inside["lon"]},
        {**curved, "lat": lat + 5},
    ):
        with pytest.raises(ConfigError, match=r"the prognostic needs lat .* the data"):
            check_covered(wrong, lat, lon, "the prognostic", "the data")


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 3))
def test_a_plan_serves_every_time_lead_time_and_member(member, hour, others):
    _, coords = grid([0.0], [0.0])
    own = OrderedDict(ensemble=np.array([0]), time=np.array([0], "M8[ns]"), **coords)
    later = OrderedDict(own, ensemble=np.array([member]), time=np.array([hour], "M8[h]"))
    assert plan_key(own) == plan_key(later)
    assert plan_key(own) != plan_key(coords)
    assert plan_key(own) != plan_key(OrderedDict(own, lat=np.arange(1.0 + others)))


class Counting:
    """As a transport as far as it gives memory."""

    def __init__(self):
        self.made = 0

    def empty(self, shape, dtype, device):
        return torch.empty(tuple(shape), dtype=dtype, device=device)

    def expect(self, nbytes):
        pass


def test_the_plans_do_not_grow_with_the_ensemble(monkeypatch):
    made = []
    original = arguments_module.plan
    monkeypatch.setattr(arguments_module, "plan", lambda *args: made.append(1) or original(*args))
    x, coords = grid([0.0, 1.0], [0.0, 1.0])
    arguments = Arguments("rain", {"lat": np.array([1.0])}, Counting())
    for member in range(5):
        own = OrderedDict(ensemble=np.array([member]), **coords)
        (y, _), _ = arguments.own((x[None], own), {})
        assert y.tolist() == [[[[1000, 1001]]]]
    assert len(made) == 1


# The recipe.


class Identity:
    def __init__(self, lat, lon):
        self._grid = OrderedDict(lat=lat, lon=lon)

    def input_coords(self):
        return OrderedDict(variable=VARIABLE, **self._grid)

    def output_coords(self, coords):
        return OrderedDict(coords)

    def forward(self, x, coords):
        return x, coords


def test_a_chain_refuses_a_region_elsewhere():
    chain = Chain([Link("rain", lambda: Identity(np.arange(3.0), np.arange(3.0)))])
    _, coords = grid(np.arange(3.0), np.arange(120.0, 123))
    step = OrderedDict(time=np.array([0], "M8[ns]"), lead_time=np.array([0], "m8[ns]"), **coords)
    with pytest.raises(ConfigError, match=r"diagnostic\.rain needs lon 0, 1, 2"):
        chain.output_coords(step)


def europe(folder, kind=".nc"):
    lat, lon = np.array([50.0, 45, 40]), np.array([0.0, 5, 10])
    times = np.array(["2023-06-01"], "M8[ns]")
    data = xr.Dataset(
        {"t2m": (("time", "lat", "lon"), np.ones((1, 3, 3), np.float32))},
        {"time": times, "lat": lat, "lon": lon},
    )
    path = folder / f"europe{kind}"
    data.to_netcdf(path)
    return path


@pytest.mark.slow
def test_a_file_over_europe_starts_no_global_forecast(tmp_path):
    path = europe(tmp_path)
    config = OmegaConf.create(
        {
            "parameters": {
                "time": "2023-06-01",
                "nsteps": 1,
                "ensemble": None,
                "output_path": "x.zarr",
            },
            "prognostic": {
                "_target_": "distinf.models.persistence",
                "variable": ["t2m"],
                "nlat": 181,
                "nlon": 360,
            },
            "data": {"_target_": "distinf.models.FileSource", "path": str(path)},
            "diagnostic": {"same": {"_target_": "earth2studio.models.dx.Identity"}},
            "perturbation": None,
            "output": {},
            "runtime": {},
        }
    )
    with pytest.raises(ConfigError, match=r"prognostic needs lat 90 to -90 .* the data has lat"):
        check_models(config)
    config.prognostic.update(nlat=3, nlon=3)  # a spacing of 90 degrees: as near as it gets
    config.prognostic._target_ = "distinf.models.replay"
    for key in ("nlat", "nlon"):
        config.prognostic.pop(key)
    config.prognostic.update(path=str(path), step=6)
    check_models(config)


def test_data_that_tells_no_grid_is_refused_before_the_first_step(tmp_path):
    from distinf.models.fields import FileSource, persistence

    source = FileSource(str(europe(tmp_path)))
    prognostic = persistence(["t2m"], 181, 360)
    with pytest.raises(ConfigError, match="the prognostic needs lat 90 to -90"):
        check_initial(prognostic, source)

    def unknown(time, variable):
        return source(time, np.array([0], "m8[ns]"), variable)[:, 0]

    check_initial(prognostic, unknown)  # only its data will tell
    with pytest.raises(ConfigError, match="the prognostic needs lat 90 to -90"):
        next(rollout(prognostic, unknown, np.datetime64("2023-06-01", "ns"), 1))
