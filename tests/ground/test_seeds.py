"""Seeds: the same for the same task, another for every other."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from distinf.seeds import seed_of, seeded, task_seed

TIME = np.datetime64("2023-06-01")


def draws():
    return random.random(), np.random.rand(), float(torch.rand(1))  # noqa: NPY002


def test_each_part_of_a_task_decides_its_seed():
    tasks = [
        (seed, name, TIME + np.timedelta64(day, "D"), np.timedelta64(lead, "h"), member)
        for seed in range(2)
        for name in ("a", "b")
        for day in range(3)
        for lead in range(3)
        for member in (None, 0, 1)
    ]
    assert len({task_seed(*task) for task in tasks}) == len(tasks)
    # Known from the first version on: runs made with it can be made again.
    assert task_seed(0, "corrdiff", TIME, np.timedelta64(6, "h"), 1) == 4140693995


@given(st.sampled_from(["s", "ms", "ns"]), st.sampled_from(["h", "m", "ns"]))
def test_the_unit_of_a_time_does_not_matter(unit, lead_unit):
    lead = np.timedelta64(6, "h")
    other = task_seed(0, "a", TIME.astype(f"M8[{unit}]"), lead.astype(f"m8[{lead_unit}]"))
    assert other == task_seed(0, "a", TIME, lead)


def test_a_task_is_known_by_its_coords():
    coords = {"time": np.array([TIME]), "lead_time": np.array([0, 6], "m8[h]")}
    assert seed_of(3, "a", coords) == task_seed(3, "a", TIME, np.timedelta64(6, "h"))
    coords["ensemble"] = np.array([2])
    assert seed_of(3, "a", coords) == task_seed(3, "a", TIME, np.timedelta64(6, "h"), 2)


@given(st.integers(0, 2**32 - 1))
def test_draws_in_a_block_depend_on_its_seed_alone_and_leave_no_trace(seed):
    torch.manual_seed(1)
    with seeded(seed):
        first = draws()
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    with seeded(seed):
        assert draws() == first
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
