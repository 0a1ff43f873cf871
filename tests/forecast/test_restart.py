"""Saved states: an interrupted forecast goes on from one, and nobody can tell from its bytes."""

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.errors import ConfigError
from distinf.forecast.batching import Block, blocks, tasks
from distinf.forecast.prognostic import forecasts
from distinf.forecast.restart import RestartStates, is_restartable, reached_by
from distinf.options import Output
from distinf.seeds import generators
from distinf.store import ForecastStore, StoreLayout
from tests.forecast.test_prognostic import GRID, STEP, TIMES, Days, Doubling
from tests.waiting import until as wait_until

NSTEPS = 12
LEADS = np.arange(NSTEPS + 1) * STEP
STATE = OrderedDict(time=TIMES[:1], lead_time=LEADS[:1], variable=np.array(["a"]), **GRID)


def open_store(path, mode="resume", **output):
    every = output.get("every", 1)
    return ForecastStore(
        path,
        StoreLayout(TIMES, LEADS[::every], {"same": STATE}),
        Output(mode, **output),
        pending=50,
    )


def done(x, coords, error=None):
    future = Future()
    if error is None:
        future.set_result((x.clone(), coords))
    return future


def stored(store, coords):
    store.check()
    return store.marks.is_complete("same", coords)


def run(path, restart_every=3, leave_out=(), until=None, every=1, draw=True):
    """Forecast into a store as the recipe does, without some tasks; returns the steps forecast."""
    forecast = []
    with open_store(path, every=every) as store:
        restart = RestartStates(store.destination, restart_every, reached_by(store.marks, every))
        todo = [
            Block(block.times, block.members, lacks[1] * every)
            for block in blocks(Block(TIMES[:2], None, NSTEPS), 1)
            if (lacks := store.marks.incomplete(block.times, block.members))
        ]
        states = forecasts(Doubling(draw), Days(), todo, seed=3, restart=restart)
        for x, coords in states:
            step = int(coords["lead_time"][0] / STEP)
            forecast.append((str(coords["time"][0])[:10], step))
            for part, own in tasks(x, coords):
                if "same" in store.marks.lacking(own) and step not in leave_out:
                    store.write("same", done(part, own))
                    if step and every == 1:
                        wait_until(lambda own=own: stored(store, own))
            if step == until:
                break
    return forecast


def values(path):
    import xarray as xr

    with xr.open_zarr(path) as ds:
        return ds["a"].values[:2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "f.zarr"
    assert len(run(path, restart_every=NSTEPS + 1)) == 2 * (NSTEPS + 1)
    return values(path)


def test_an_interrupted_forecast_goes_on_from_its_newest_state(tmp_path, whole):
    path = tmp_path / "f.zarr"
    run(path, until=8)
    again = run(path)
    assert again[0] == ("2023-06-01", 6)
    assert len(again) == 7 + 13
    np.testing.assert_array_equal(values(path), whole)


def test_no_state_is_taken_that_is_ahead_of_the_store(tmp_path, whole):
    path = tmp_path / "f.zarr"
    run(path, leave_out=[4], until=11)
    assert run(path)[0] == ("2023-06-01", 3)
    np.testing.assert_array_equal(values(path), whole)


def test_few_states_are_kept_however_long_a_step_is_lacking(tmp_path):
    path = tmp_path / "f.zarr"
    run(path, restart_every=1, leave_out=[2])
    saved = list((path / ".distinf.restart").glob("2023-06-01*"))
    assert 1 <= len(saved) <= 3
    assert run(path)[0][1] <= 2


def test_a_complete_store_keeps_no_states(tmp_path):
    path = tmp_path / "f.zarr"
    run(path, until=8)
    assert (path / ".distinf.restart").exists()
    with open_store(path) as store:
        for i in range(3):
            for lead in LEADS:
                step = OrderedDict(STATE, time=TIMES[i : i + 1], lead_time=np.array([lead]))
                store.write("same", done(torch.zeros(1, 1, 1, 3, 4), step))
    assert not (path / ".distinf.restart").exists()


@pytest.mark.slow
@settings(max_examples=6)
@given(st.integers(1, 5), st.integers(1, NSTEPS), st.sets(st.integers(0, NSTEPS)))
def test_whatever_is_lacking_the_bytes_are_the_same(
    tmp_path_factory, whole, restart_every, until, leave_out
):
    path = tmp_path_factory.mktemp("run") / "f.zarr"
    run(path, restart_every, leave_out, until)
    first = run(path, restart_every)[0][1]
    assert first <= min(leave_out, default=until + 1)
    np.testing.assert_array_equal(values(path), whole)


def test_a_damaged_state_is_passed_over(tmp_path, whole, caplog):
    path = tmp_path / "f.zarr"
    run(path, until=8)
    (newest,) = (path / ".distinf.restart").glob("*step6.npz")
    data = newest.read_bytes()
    newest.write_bytes(data[: len(data) // 2])
    again = run(path)
    assert again[0][1] in (0, 3)
    assert "step6.npz is damaged" in caplog.text
    np.testing.assert_array_equal(values(path), whole)


def saved(path, save):
    """Save a state of step 1 in a store that has reached it, and read it from the newest one."""
    block = Block(TIMES[:1], None, NSTEPS)
    with open_store(path) as store:
        for lead in LEADS[:2]:
            step = OrderedDict(STATE, lead_time=np.array([lead]))
            store.write("same", done(torch.zeros(1, 1, 1, 3, 4), step))
        wait_until(lambda: store.marks.incomplete(block.times, None)[0] == 2)
        restart = RestartStates(store.destination, 1, reached_by(store.marks))
        save(restart, block, OrderedDict(STATE, lead_time=LEADS[1:2]))
        return restart.newest(block)


DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int16),
    *(torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_state_of_any_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    raw = torch.arange(1 * 1 * 1 * 4 * 3 * dtype.itemsize, dtype=torch.uint8) * 37
    raw = raw % 2 if dtype == torch.bool else raw
    x = raw.view(dtype).reshape(1, 1, 1, 4, 3).transpose(-1, -2)

    def save(restart, block, coords):
        restart.offer(block, 1, x, coords)
        restart.finish(block)

    state = saved(tmp_path / "f.zarr", save)
    assert (state.step, state.x.dtype, state.x.shape) == (1, dtype, (1, 1, 1, 3, 4))
    back = state.x.transpose(-1, -2).contiguous().reshape(-1).view(torch.uint8)
    assert torch.equal(back, raw)
    assert set(state.generators) == {"python", "numpy", "torch"}


def test_a_state_that_an_earlier_version_saved_is_read(tmp_path):
    folder = tmp_path / "f.zarr" / ".distinf.restart"
    x = torch.arange(12.0).reshape(1, 1, 1, 3, 4)

    def save(restart, block, coords):
        folder.mkdir()
        coords = {f"coord {key}": values for key, values in coords.items()}
        np.savez(folder / "2023-06-01T000000_step1.npz", x=x.numpy(), **generators(), **coords)

    state = saved(tmp_path / "f.zarr", save)
    assert torch.equal(state.x, x)
    assert list(state.coords) == list(STATE)


class SeveralLeads(Doubling):
    def input_coords(self):
        return OrderedDict(super().input_coords(), lead_time=np.array([-1, 0]) * STEP)


class OwnGenerator(Doubling):
    def set_rng(self, seed):
        pass


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (SeveralLeads, "starts from several lead times"),
        (OwnGenerator, "draws random numbers of its own"),
    ],
)
def test_a_model_that_cannot_restart_is_no_restartable_one(model, words):
    assert not is_restartable(model())
    with pytest.raises(ConfigError, match=f"prognostic.restartable=true: {model.__name__} {words}"):
        is_restartable(model(), True)


def test_only_what_is_stated_or_bound_restarts():
    assert not is_restartable(Doubling())
    assert is_restartable(Doubling(), True)


def test_states_of_blocks_that_end_in_another_order_are_removed(tmp_path):
    """Several drivers end their blocks at the same time, and one may be far behind."""
    done, blocks = (
        set(),
        [Block(TIMES[i : i + 2], np.array([k]), 2) for i in (0, 1) for k in (0, 1)],
    )
    key = {id(block): i for i, block in enumerate(blocks)}
    with open_store(tmp_path / "f.zarr") as store:
        restart = RestartStates(store.destination, 1, lambda block: 3 * (key[id(block)] in done))
        folder = tmp_path / "f.zarr" / ".distinf.restart"
        for block in blocks:
            restart._writing = None
            restart.offer(block, 1, torch.zeros(2, 1, 1, 3, 4), STATE)
            restart._writing.result()
        restart.finish(blocks[0])
        done |= {1, 2}
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(restart.finish, blocks[1:]))
        left = sorted(path.name for path in folder.iterdir())
        assert left == [
            "2023-06-01T000000_member0_step1.npz",
            "2023-06-02T000000_member1_step1.npz",
        ]
