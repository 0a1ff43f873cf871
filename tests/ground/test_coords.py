"""Selection: what Earth2Studio's map_coords gives, in memory of its own, or a refusal."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from earth2studio.utils.coords import map_coords
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distinf.coords import plan, plan_region, step_words
from distinf.errors import ConfigError

VARIABLES = np.array(["u10m", "v10m", "t2m", "sp", "tcwv", "z500", "u850"])
NLAT, NLON = 7, 12


def state(dtype=np.float64):
    coords = OrderedDict(
        time=np.array(["2023-06-01"], dtype="datetime64[ns]"),
        lead_time=np.array([6], dtype="timedelta64[h]"),
        variable=VARIABLES,
        lat=np.linspace(90, -90, NLAT).astype(dtype),
        lon=np.linspace(0, 360, NLON, endpoint=False).astype(dtype),
    )
    shape = [len(values) for values in coords.values()]
    x = torch.arange(np.prod(shape), dtype=torch.float32).reshape(shape)
    return x, coords


def part_of(values):
    """A contiguous piece, a subset in any order, or a roll of some coordinate values."""
    n = len(values)
    pieces = st.tuples(st.integers(0, n - 1), st.integers(1, n)).map(
        lambda p: values[p[0] : p[0] + p[1]]
    )
    subsets = st.lists(st.sampled_from(range(n)), min_size=1, unique=True).map(
        lambda i: values[np.array(i)]
    )
    rolls = st.integers(0, n - 1).map(lambda shift: np.roll(values, shift))
    return pieces | subsets | rolls


def near(values):
    """Numbers that the grid need not hold, none of them nearer across the first meridian."""
    low, high = float(values.min()), float(values.max())
    numbers = st.floats(low - 14, high + 14, width=32)
    return st.lists(numbers, min_size=1, max_size=8).map(
        lambda chosen: np.array(chosen, dtype=values.dtype)
    )


@st.composite
def requests(draw, dtype):
    _, coords = state(dtype)
    wanted = OrderedDict()
    if draw(st.booleans()):
        wanted["batch"] = np.empty(0)
    wanted["time"] = np.empty(0)
    wanted["lead_time"] = np.array([0], dtype="timedelta64[h]")
    wanted["variable"] = draw(part_of(coords["variable"]))
    for key in ("lat", "lon"):
        some = part_of(coords[key]) | near(coords[key]) | st.just(coords[key])
        wanted[key] = draw(some | st.just(np.empty(0)))
    return wanted


def is_unique(wanted):
    """map_coords takes exact values once each; nearest ones as often as they come."""
    return all(
        len(np.unique(wanted[key])) == len(wanted[key]) for key in ("variable", "lat", "lon")
    )


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # in map_coords itself
@settings(max_examples=300, deadline=None)
@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]))
def test_equals_map_coords(data, dtype):
    wanted = data.draw(requests(dtype).filter(is_unique))
    x, coords = state(dtype)
    expected, expected_coords = map_coords(x, coords, wanted)
    y, y_coords = plan(coords, wanted)(x, coords)
    assert torch.equal(y, expected)
    assert list(y_coords) == list(expected_coords)
    for key, values in expected_coords.items():
        np.testing.assert_array_equal(y_coords[key], values)
        assert y_coords[key].dtype == values.dtype


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_owns_its_memory(data):
    wanted = data.draw(requests(np.float64))
    x, coords = state()
    y, _ = plan(coords, wanted)(x, coords)
    before = y.clone()
    x.fill_(-1)
    assert torch.equal(y, before)
    assert y.is_contiguous()
    assert y.untyped_storage().nbytes() == y.numel() * y.element_size()


def test_everything_as_it_is_still_owns_its_memory():
    x, coords = state()
    y, y_coords = plan(coords, coords)(x, coords)
    x.fill_(-1)
    assert y.min() == 0
    assert y_coords == coords


def test_duplicates_are_taken_as_often_as_wanted():
    x, coords = state()
    wanted = {"variable": np.array(["t2m", "sp", "t2m"])}
    y, _ = plan(coords, wanted)(x, coords)
    assert torch.equal(y, x[:, :, [2, 3, 2]])


def test_plan_serves_every_step():
    x, coords = state()
    cut = plan(coords, {"variable": np.array(["sp"])})
    later = OrderedDict(coords, lead_time=np.array([12], dtype="timedelta64[h]"))
    y, y_coords = cut(x + 1, later)
    assert y_coords["lead_time"] == np.timedelta64(12, "h")
    assert list(y_coords["variable"]) == ["sp"]
    assert torch.equal(y, x[:, :, 3:4] + 1)


def test_missing_variables_are_listed_with_what_there_is():
    _, coords = state()
    wanted = {"variable": np.array(["t2m", "q500", "u300"])}
    with pytest.raises(ConfigError) as caught:
        plan(coords, wanted, "WindgustAFNO")
    message = str(caught.value)
    assert message.startswith("WindgustAFNO")
    missing, there = message.split("produces", 1)[0], message.split("produces", 1)[1]
    assert "q500" in missing
    assert "u300" in missing
    assert "t2m" not in missing
    assert all(name in there for name in VARIABLES)


def test_a_missing_dimension_is_named():
    _, coords = state()
    with pytest.raises(ConfigError, match=r"WindgustAFNO.*'level'.*'variable', 'lat', 'lon'"):
        plan(coords, {"level": np.array([500])}, "WindgustAFNO")


def curvilinear():
    lat, lon = np.meshgrid(np.linspace(50, 40, 4), np.linspace(0, 5, 6), indexing="ij")
    coords = OrderedDict(variable=VARIABLES, lat=lat, lon=lon)
    return torch.rand(len(VARIABLES), 4, 6), coords


def test_the_same_curvilinear_grid_is_taken_whole():
    x, coords = curvilinear()
    wanted = {"variable": VARIABLES[[3, 1]], "lat": coords["lat"], "lon": coords["lon"]}
    y, y_coords = plan(coords, wanted)(x, coords)
    assert torch.equal(y, x[[3, 1]])
    np.testing.assert_array_equal(y_coords["lat"], coords["lat"])


@pytest.mark.parametrize("change", [lambda v: v + 1, lambda v: v[:2], lambda v: v[:, 0]])
def test_another_curvilinear_grid_is_refused(change):
    _, coords = curvilinear()
    with pytest.raises(ConfigError, match="another grid: lat of shape"):
        plan(coords, {"lat": change(coords["lat"]), "lon": change(coords["lon"])})


def test_a_curvilinear_request_of_a_regular_grid_is_refused():
    _, coords = state()
    _, other = curvilinear()
    with pytest.raises(ConfigError, match="another grid"):
        plan(coords, {"lat": other["lat"], "lon": other["lon"]})


def wide(lons):
    return OrderedDict(variable=VARIABLES[:1], lat=np.linspace(90, -90, 19), lon=lons)


@example(0.0, 0.0, -162.87122908996702, 163.0, 0.0)
@given(
    st.floats(-90, 90),
    st.floats(0, 180),
    st.floats(-180, 360),
    st.floats(0, 359),
    st.sampled_from([0.0, -180.0]),
)
def test_a_region_holds_just_the_points_inside(south, height, west, width, first):
    coords = wide(first + np.linspace(0, 360, 36, endpoint=False))
    north, east = min(90.0, south + height), west + width
    if east > 360:
        east -= 360
    # Coordinates are rounded, but the same if they are less than 1e-4 degrees apart.
    inside_lat = (coords["lat"] >= south - 1e-4) & (coords["lat"] <= north + 1e-4)
    # As on a map: somewhere east of the western edge, and not beyond the eastern one.
    inside_lon = (coords["lon"] - west + 1e-4) % 360 <= 2e-4 + (
        east - west if east >= west else east - west + 360
    )
    x = torch.arange(19 * 36, dtype=torch.float32).reshape(1, 19, 36)
    region = {"lat": [south, north], "lon": [west, east]}
    if not inside_lat.any() or not inside_lon.any():
        with pytest.raises(ConfigError, match="holds no point of the grid of rain"):
            plan_region(coords, region, "rain")
        return
    y, there = plan_region(coords, region)(x, coords)
    assert set(np.unique(y)) == set(x.numpy()[0][np.ix_(inside_lat, inside_lon)].ravel())
    np.testing.assert_array_equal(there["lat"], coords["lat"][inside_lat])
    assert (np.diff(there["lon"]) > 0).all()
    assert tuple(y.shape) == (1, len(there["lat"]), len(there["lon"]))
    for j, lon in enumerate(there["lon"]):
        apart = (coords["lon"] - lon + 180) % 360 - 180  # may be a little less than 0
        column = np.flatnonzero(np.isclose(apart, 0, atol=1e-6))
        assert np.array_equal(y.numpy()[0, :, j], x.numpy()[0, inside_lat, column[0]])


@given(st.integers(-899, 800), st.integers(0, 99), st.integers(-1799, 3599), st.integers(0, 3600))
def test_a_region_has_both_edges_of_a_grid_of_tenths(south, height, west, width):
    """Neither its coordinates nor the edges are exact; no column is there twice."""
    coords = OrderedDict(lat=np.linspace(90, -90, 1801), lon=np.linspace(0, 360, 3601)[:-1])
    east = west + width if west + width <= 3600 else west + width - 3600
    region = {"lat": [south / 10, (south + height) / 10], "lon": [west / 10, east / 10]}
    there = plan_region(coords, region).select_coords(coords)
    rows = np.arange(south + height, south - 1, -1) / 10
    np.testing.assert_allclose(there["lat"], rows, rtol=0, atol=1e-9)
    assert len(there["lon"]) == (1 if east == west else min(width, 3599) + 1)
    np.testing.assert_allclose(np.diff(there["lon"]), 0.1, rtol=0, atol=1e-9)


def test_a_column_that_closes_the_circle_is_taken_once():
    coords = OrderedDict(lat=np.zeros(1), lon=np.linspace(0, 360, 37))
    for region, expected in (([350, 10], [350, 360, 370]), ([-180, 180], range(-180, 180, 10))):
        np.testing.assert_array_equal(plan_region(coords, {"lon": region}).coords["lon"], expected)


def test_dimensions_in_another_order_are_refused():
    _, coords = state()
    turned = OrderedDict(reversed(coords.items()))
    with pytest.raises(ConfigError, match="a model needs the dimensions lat, lon in this"):
        plan(turned, {key: coords[key] for key in ("variable", "lat", "lon")}, "a model")


def test_a_region_across_the_first_meridian_ascends_from_the_west():
    coords = wide(np.arange(0, 360, 10.0))
    for west, expected in ((-20, [-20, -10, 0, 10]), (340, [340, 350, 360, 370])):
        cut = plan_region(coords, {"lon": [west, 10]})
        np.testing.assert_array_equal(cut.coords["lon"], expected)


def test_a_region_of_a_curvilinear_grid_is_the_rectangle_around_it():
    lat, lon = np.meshgrid(np.linspace(50, 40, 6), np.linspace(0, 5, 6), indexing="ij")
    lat = lat + lon
    coords = OrderedDict(variable=VARIABLES[:1], lat=lat, lon=lon)
    x = torch.arange(36.0).reshape(1, 6, 6)
    y, there = plan_region(coords, {"lat": [44, 46], "lon": [1, 3]})(x, coords)
    inside = (lat >= 44) & (lat <= 46) & (lon >= 1) & (lon <= 3)
    rows, columns = inside.any(axis=1), inside.any(axis=0)
    np.testing.assert_array_equal(there["lat"], lat[np.ix_(rows, columns)])
    np.testing.assert_array_equal(y.numpy()[0], x.numpy()[0][np.ix_(rows, columns)])
    with pytest.raises(ConfigError, match="holds no point of the grid of rain"):
        plan_region(coords, {"lat": [-44, -40]}, "rain")


TIMES = np.array(["2023-06-01T00", "2023-06-02T12"], "M8[ns]")
LEADS = np.array([6, 12], "m8[h]").astype("m8[ns]")


@pytest.mark.parametrize(
    ("given", "where", "words"),
    [
        ({"time": TIMES[:1], "lead_time": LEADS}, (), " 2023-06-01T00:00 +12 h"),
        ({"ensemble": np.array([3]), "time": TIMES[1:]}, (), " 2023-06-02T12:00 member 3"),
        ({"ensemble": np.arange(2), "time": TIMES}, (), " 2023-06-01T00:00 member 0 and 3 more"),
        ({"ensemble": np.arange(2), "time": TIMES}, (1, 1), " 2023-06-02T12:00 member 1"),
        ({"time": np.arange(3), "lead_time": [6], "lat": TIMES}, (), ""),
    ],
)
def test_a_step_is_named_as_far_as_its_coords_say(given, where, words):
    assert step_words(OrderedDict(given), where) == words
