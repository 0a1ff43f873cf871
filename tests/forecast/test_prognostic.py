"""Dates and members one after the other, batched or not."""

import threading
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from distinf.errors import ConfigError
from distinf.forecast.batching import Block, blocks, tasks
from distinf.forecast.initial import perturb
from distinf.forecast.prognostic import forecasts, states
from distinf.report import Events
from distinf.seeds import seeded, task_seed

TIMES = np.array(["2023-06-01", "2023-06-02", "2023-06-03"], "M8[ns]")
STEP = np.timedelta64(6, "h").astype("m8[ns]")


GRID = OrderedDict(lat=np.linspace(90, -90, 3), lon=np.arange(0, 360, 90.0))


class Noise:
    """As Earth2Studio's ``Gaussian``: draws from a generator of its own."""

    def __init__(self, noise_amplitude=0.05, seed=None):
        self.noise_amplitude, self.seed = noise_amplitude, seed

    def __call__(self, x, coords):
        generator = torch.Generator().manual_seed(self.seed)
        return x + self.noise_amplitude * torch.randn(x.shape, generator=generator), coords


class Doubling:
    """A prognostic that doubles its state, in place."""

    def __init__(self, draw=False):
        self.draw = draw

    def input_coords(self):
        return OrderedDict(
            batch=np.empty(0),
            time=np.empty(0),
            lead_time=np.array([0], "m8[ns]"),
            variable=np.array(["a"]),
            **GRID,
        )

    def output_coords(self, coords):
        return OrderedDict(coords, lead_time=coords["lead_time"] + STEP)

    def create_iterator(self, x, coords):
        while True:
            yield x, coords
            x.mul_(2)
            if self.draw:
                x.add_(torch.rand(1))
            coords = OrderedDict(coords, lead_time=coords["lead_time"] + STEP)


class Days:
    """The day of the month, everywhere; remembers who asked when."""

    def __init__(self):
        self.asked = []

    def __call__(self, time, variable):
        self.asked.append((np.atleast_1d(time), threading.current_thread()))
        days = np.atleast_1d(time).astype("M8[D]").astype(object)
        data = np.array([d.day for d in days], "float32")[:, None, None, None]
        data = np.broadcast_to(data, (len(days), 1, 3, 4)).copy()
        coords = {"time": np.atleast_1d(time), "variable": ["a"], **GRID}
        return xr.DataArray(data, coords, list(coords))


@given(st.integers(1, 5), st.none() | st.integers(1, 5), st.integers(1, 12))
def test_blocks_hold_each_forecast_once(ndates, members, batch):
    times = TIMES[0] + np.arange(ndates) * np.timedelta64(1, "D")
    made = blocks(Block(times, np.arange(members) if members else None, 4), batch)
    pairs = [
        (time, member)
        for block in made
        for time in block.times
        for member in (block.members if members else [None])
    ]
    every = range(members) if members else [None]
    assert sorted(pairs, key=str) == sorted(((t, m) for t in times for m in every), key=str)
    for block in made:
        assert len(block.times) * len(block.members if members else [0]) <= batch
        assert block.nsteps == 4


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6])
def test_states_do_not_depend_on_the_batch(batch):
    perturbation = perturb(partial(Noise, noise_amplitude=0.1), seed=5)
    todo = blocks(Block(TIMES, np.arange(2), 2), batch)
    seen = {}
    for state in forecasts(Doubling(), Days(), todo, perturbation=perturbation):
        for x, coords in tasks(*state):
            assert tuple(x.shape) == (1, 1, 1, 1, 3, 4)
            key = coords["time"][0], int(coords["ensemble"][0]), coords["lead_time"][0]
            assert key not in seen
            seen[key] = x.clone()
    assert len(seen) == 3 * 2 * 3
    for (time, member, lead), x in seen.items():
        noise = Noise(0.1, seed=task_seed(5, "perturbation", time, None, member))
        day = int(str(time)[8:10])
        expected = noise(torch.full((1, 1, 1, 1, 3, 4), float(day)), OrderedDict())[0]
        assert torch.equal(x, expected * 2 ** int(lead / STEP))


@pytest.mark.parametrize("batch", [1, 4])
def test_states_come_one_case_at_a_time_and_only_those_that_a_store_lacks(batch):
    class Stored:
        """The first date is complete, of the others the last lead time is."""

        def incomplete(self, times, members):
            return None if list(times) == [TIMES[0]] else (0, 1)

    seen = [
        (coords["time"][0], int(coords["ensemble"][0]), int(coords["lead_time"][0] / STEP), x.shape)
        for x, coords in states(
            *(Doubling(), Days(), Block(TIMES, np.arange(2), 4), Stored()), every=2, batch=batch
        )
    ]
    cases = [(t, m) for t in TIMES[batch == 1 :] for m in range(2)]
    assert sorted(seen) == [(t, m, step, (1, 1, 1, 1, 3, 4)) for t, m in cases for step in range(3)]


class Globe(Days):
    """The longitude, from 0 to 360, everywhere on a grid that begins elsewhere."""

    def __init__(self, lat, lon):
        super().__init__()
        self.lat, self.lon = lat, lon

    def __call__(self, time, variable):
        times = np.atleast_1d(time)
        shape = (len(times), 1, len(self.lat), len(self.lon))
        data = np.broadcast_to((self.lon % 360).astype("float32"), shape).copy()
        coords = {"time": times, "variable": ["a"], "lat": self.lat, "lon": self.lon}
        return xr.DataArray(data, coords, list(coords))


class Forecast:
    """The same as a source of forecasts."""

    def __init__(self, source):
        self.source = source

    def __call__(self, time, lead_time, variable):
        return self.source(time, variable).expand_dims(lead_time=lead_time, axis=1)


@pytest.mark.parametrize("forecast", [False, True])
def test_data_that_is_interpolated_is_checked_whatever_its_kind(forecast):
    """A prognostic with ``interp_method`` on a grid of its own, as StormCast's first versions."""
    grid = OrderedDict(_lat=np.array([10.0, 0.0]), _lon=np.array([45.0, 90.0]))

    class Interpolated(Doubling):
        interp_method = "linear"

        def input_coords(self):
            own = super().input_coords()
            rest = [(key, own[key]) for key in ("batch", "time", "lead_time", "variable")]
            return OrderedDict([*rest, ("lat", np.empty(0)), ("lon", np.empty(0))]) | grid

    def first(lon):
        source = Globe(np.linspace(90, -90, 19), np.array(lon))
        source = Forecast(source) if forecast else source
        return next(forecasts(Interpolated(), source, blocks(Block(TIMES[:1], None, 1), 1)))[0]

    assert first([0.0, 90.0, 180.0, 270.0])[0, 0, 0].tolist() == [[45, 90]] * 2
    with pytest.raises(ConfigError, match=r"the prognostic needs lon 45, 90, but the data"):
        first([200.0, 210.0])


@pytest.mark.parametrize("forecast", [False, True])
def test_what_a_perturbation_reads_lies_on_the_grid_of_the_prognostic(forecast):
    """As that which is bred with a model: it reads the data by itself, without wrapping."""
    from earth2studio.data import fetch_data
    from earth2studio.utils.coords import map_coords

    class Bred:
        def __init__(self, model, data):
            self.model, self.data = model, data

        def __call__(self, x, coords):
            wanted = self.model.input_coords()
            own = fetch_data(self.data, coords["time"], wanted["variable"], wanted["lead_time"])
            return map_coords(*own, wanted)[0][None] - x, coords

    west = Globe(GRID["lat"][::-1], np.arange(-180, 180, 90.0))
    if forecast:
        west = Forecast(west)
    perturbation = perturb(Bred, 0, Doubling(), west)
    (x, coords), *_ = forecasts(
        Doubling(), west, [Block(TIMES[:1], np.arange(1), 1)], perturbation=perturbation
    )
    assert x.shape == (1, 1, 1, 1, 3, 4)
    assert not x.any()
    half = Globe(GRID["lat"], np.array([0.0, 10.0]))
    state = torch.zeros(1, 1, 1, 1, 3, 4), coords
    with pytest.raises(ConfigError, match="the prognostic needs lon 0, 90, 180, 270, but the data"):
        perturb(Bred, 0, Doubling(), half)(*state)


def test_the_next_date_is_read_while_this_one_is_forecast():
    data, events = Days(), Events()
    asked = threading.Event()

    class Seen(Days):
        def __call__(self, time, variable):
            if np.atleast_1d(time)[0] == TIMES[1]:
                asked.set()
            return data(time, variable)

    forecast = forecasts(Doubling(), Seen(), blocks(Block(TIMES, None, 3), 1), events=events)
    next(forecast)
    assert asked.wait(30)  # though nobody has asked for its first state
    list(forecast)
    assert [list(times) for times, _ in data.asked] == [[t] for t in TIMES]
    assert sum(event.kind == "read" for event in events) == 3


def test_an_error_of_the_data_source_reaches_the_forecast():
    class Broken(Days):
        def __call__(self, time, variable):
            if np.atleast_1d(time)[0] == TIMES[1]:
                raise ValueError("no such day")
            return super().__call__(time, variable)

    with pytest.raises(ValueError, match="no such day"):
        list(forecasts(Doubling(), Broken(), blocks(Block(TIMES, None, 1), 1)))


def test_a_prognostic_that_draws_begins_anew_with_each_block():
    def run(todo):
        return [x.clone() for x, _ in forecasts(Doubling(draw=True), Days(), todo, seed=1)]

    both = run([Block(TIMES[:1], None, 2), Block(TIMES[1:2], None, 2)])
    again = run([Block(TIMES[1:2], None, 2)])
    assert all(torch.equal(a, b) for a, b in zip(both[3:], again, strict=True))


def test_a_diagnostic_in_this_process_does_not_change_the_draws():
    """Rank 0 runs diagnostics beside its prognostic when all workers are lost."""
    steps, diagnosed, drawn = threading.Event(), threading.Event(), threading.Event()

    def diagnose():
        steps.wait(30)
        with seeded(5):
            torch.rand(1)
            diagnosed.set()
            drawn.wait(30)

    class BesideOne(Doubling):
        def create_iterator(self, x, coords):
            for number, state in enumerate(super().create_iterator(x, coords)):
                if number == 1:  # within a step, before and after which it draws
                    steps.set()
                    diagnosed.wait(0.5)
                    state[0].add_(torch.rand(1))
                    drawn.set()
                yield state

    def run():
        todo = [Block(TIMES[:1], None, 3)]
        return [x.clone() for x, _ in forecasts(BesideOne(draw=True), Days(), todo, seed=1)]

    diagnosed.set()
    alone = run()
    for event in (steps, diagnosed, drawn):
        event.clear()
    thread = threading.Thread(target=diagnose)
    thread.start()
    beside = run()
    thread.join(30)
    assert diagnosed.is_set()
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))


def test_a_diagnostic_that_hangs_in_this_process_does_not_hold_up_the_forecast_for_ever():
    holds, end = threading.Event(), threading.Event()

    def hang():
        with seeded(5):
            holds.set()
            end.wait(60)

    def check():
        raise ConfigError("no answer in 0.2 s")

    thread = threading.Thread(target=hang)
    thread.start()
    holds.wait(30)
    try:
        todo = [Block(TIMES[:1], None, 1)]
        with pytest.raises(ConfigError, match="no answer"):
            next(forecasts(Doubling(), Days(), todo, check=check))
    finally:
        end.set()
        thread.join(30)
