"""The arithmetic of the summary's advice."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distinf.report.advice import (
    Work,
    advise,
    best_drivers,
    fewest,
    ideal,
    keeping_up,
    limit,
    serial,
    shared,
)

seconds = st.integers(0, 1000).map(lambda n: n / 16)
WORKS = st.builds(
    Work,
    states=st.integers(1, 500),
    tasks=st.integers(1, 1000),
    prognostic=seconds,
    diagnostic=seconds,
    write=seconds,
    start=seconds,
    writers=st.integers(1, 4),
)
workers = st.integers(1, 200)


@given(WORKS, workers)
def test_the_ideal_lies_between_its_parts_and_the_sum(work, workers):
    best = ideal(work, workers)
    assert best >= work.start + work.steps + work.diagnostic + work.write
    assert best >= work.start + work.calls / workers
    assert best <= serial(work) + 1e-9
    assert ideal(work, workers + 1) <= best
    assert ideal(work, math.inf) <= best


@given(WORKS.map(lambda work: dataclasses.replace(work, prognostic=0, write=0)))
def test_one_worker_takes_the_sum_without_a_prognostic(work):
    assert ideal(work, 1) == pytest.approx(serial(work))


@given(WORKS, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_no_fewer_workers_are_enough(work, share):
    enough = ideal(work, math.inf) / share
    found = fewest(lambda workers: ideal(work, workers), enough, work.tasks)
    assert ideal(work, found) <= enough + 1e-9
    assert found == 1 or ideal(work, found - 1) > enough - 1e-9


@given(WORKS)
def test_with_enough_workers_the_diagnostics_limit_nothing(work):
    assert limit(work, keeping_up(work)) != "diagnostics"
    if keeping_up(work) > 1 and limit(work, keeping_up(work) - 1) != "writing":
        assert limit(work, keeping_up(work) - 1) == "diagnostics"


def test_the_measured_job():
    work = Work(states=41, tasks=41, prognostic=0.05, diagnostic=0.2)
    assert ideal(work, 4) == pytest.approx(2.2)
    assert ideal(work, 2) == pytest.approx(4.1)
    assert keeping_up(work) == 4
    assert serial(work) == pytest.approx(10.2)


@pytest.mark.parametrize(
    ("work", "workers", "words"),
    [
        (Work(41, 41, 0.05, 0.2), 2, ["by the diagnostics", "4 workers (runtime.nproc=5)"]),
        (Work(41, 41, 0.05, 0.2), 4, ["by the prognostic", "more workers would not"]),
        (Work(41, 41, 0.05, 0.2), 9, ["by the prognostic", "4 worker(s) (runtime.nproc=5)"]),
        (Work(41, 41, 0.05, 0.2, write=0.1), 4, ["by writing"]),
        (Work(2, 2, 0.1, 20.0), 2, ["a single diagnostic call", "would not help"]),
        (Work(1, 10, 0.0, 1.0), 2, ["by the diagnostics", "10 workers"]),
    ],
)
def test_advice(work, workers, words):
    text = advise(work, workers)
    assert text.startswith("Limited by")
    for word in words:
        assert word in text


def test_advice_for_one_process():
    assert "up to 1.2 times as fast" in advise(Work(41, 41, 0.05, 0.2), 1, in_process=True)


@pytest.mark.parametrize("wrong", [{"states": 0}, {"tasks": 0}, {"prognostic": -1.0}])
def test_impossible_work_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Work(**{"states": 2, "tasks": 2, "prognostic": 1.0, "diagnostic": 1.0, **wrong})


def test_on_ray_it_names_the_key_of_ray():
    text = advise(Work(41, 41, 0.05, 0.2), 2, engine="ray")
    assert "4 workers (runtime.workers=4) would keep up" in text


@given(WORKS, st.integers(1, 60), st.integers(1, 20))
def test_no_other_number_of_drivers_is_much_better(work, blocks, ranks):
    work = dataclasses.replace(work, states=work.states * blocks, blocks=blocks)
    best = best_drivers(work, ranks)
    assert 1 <= best <= min(ranks, blocks)
    others = [shared(work, n, ranks) for n in range(1, min(ranks, blocks) + 1)]
    assert shared(work, best, ranks) <= 1.03 * min(others)
    assert shared(work, 1, ranks) == ideal(work, max(1, ranks - 1))


def test_who_has_more_members_than_gpus_gets_more_drivers():
    cheap = Work(states=8 * 40, tasks=8 * 40, prognostic=1.0, diagnostic=0.01, blocks=8)
    assert best_drivers(cheap, 4) == 4
    assert shared(cheap, 4, 4) == pytest.approx(2 * 40 - 1 + 2 * 40 * 0.01)
    dear = dataclasses.replace(cheap, prognostic=0.01, diagnostic=1.0)
    assert best_drivers(dear, 4) == 4  # rank 0 would wait nearly all the time
    even = dataclasses.replace(cheap, diagnostic=0.45)
    assert best_drivers(even, 3) == 2
    assert shared(even, 2, 3) == pytest.approx(4 * 40 - 1 + 0.45)
    assert best_drivers(dataclasses.replace(cheap, blocks=1), 4) == 1


def test_the_advice_names_a_better_number_of_drivers():
    work = Work(states=8 * 40, tasks=8 * 40, prognostic=1.0, diagnostic=0.01, blocks=8)
    assert "runtime.drivers=4" in advise(work, 3)
    assert "4.0 times as fast" in advise(work, 3)
    shared_out = dataclasses.replace(work, drivers=4, at_home=True)
    assert "Each rank forecast and diagnosed" in advise(shared_out, 4)
    assert "runtime.drivers" not in advise(work, 3, engine="ray")
