"""The simulated run: never faster than the ideal, every task once, more workers never slower."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulation import Costs, capacities, divided, floor, simulate

seconds = st.integers(0, 50).map(lambda n: n / 16)
COSTS = st.builds(
    Costs,
    prognostic=seconds,
    diagnostic=seconds,
    bytes_in=st.integers(0, 8),
    bytes_out=st.integers(0, 8),
    link=st.sampled_from([8.0, 1e9]),
    latency=seconds,
    submit=seconds,
    result=seconds,
    write=seconds,
    writers=st.integers(1, 3),
    start=seconds,
)
FREE = st.builds(Costs, prognostic=seconds, diagnostic=seconds)
states, workers, per_state = st.integers(1, 20), st.integers(1, 12), st.integers(1, 3)


@given(COSTS, states, workers, per_state)
def test_never_faster_than_the_ideal_and_every_task_once(costs, states, workers, per_state):
    outcome = simulate(costs, states, workers, per_state)
    assert outcome.wall >= floor(costs, states, workers, per_state) - 1e-9
    assert sorted(task for task, _ in outcome.written) == list(range(states * per_state))
    assert {worker for _, worker in outcome.written} <= set(range(1, workers + 1))
    own = states * per_state * (costs.submit + costs.result)
    assert outcome.own == pytest.approx(own)
    assert outcome.wall >= own - 1e-9


@given(COSTS, states, per_state)
def test_one_worker_takes_the_sum_where_nothing_overlaps(costs, states, per_state):
    costs = replace(costs, prognostic=0.0, bytes_in=0, bytes_out=0, latency=0.0)
    costs = replace(costs, submit=0.0, result=0.0, write=0.0)
    outcome = simulate(costs, states, 1, per_state)
    assert outcome.wall == pytest.approx(costs.start + states * per_state * costs.diagnostic)


@given(COSTS)
def test_a_single_task_takes_the_sum_of_its_parts(costs):
    parts = costs.start + costs.submit + costs.diagnostic + costs.latency
    parts += (costs.bytes_in + costs.bytes_out) / costs.link + costs.result + costs.write
    assert simulate(costs, 1, 3).wall == pytest.approx(parts)


@given(FREE, states, workers)
def test_the_ideal_is_reached_in_whole_rounds_without_overhead(costs, states, workers):
    wall = simulate(costs, states, workers).wall
    # A last round that is not full takes as long as a full one, and begins after the first state.
    slack = costs.diagnostic + min(workers, states) * costs.prognostic
    assert wall <= floor(costs, states, workers) + slack + 1e-9


@given(FREE, states, workers, per_state, st.integers(1, 4))
def test_more_workers_are_never_slower_without_overhead(costs, states, workers, per_state, more):
    fewer = simulate(costs, states, workers, per_state).wall
    assert simulate(costs, states, workers + more, per_state).wall <= fewer + 1e-9


@given(COSTS, states, workers, st.sampled_from(["prognostic", "diagnostic", "submit", "start"]))
def test_one_more_step_is_never_faster(costs, states, workers, cost):
    wall = simulate(costs, states, workers).wall
    assert simulate(costs, states + 1, workers).wall >= wall - 1e-9
    if costs.link == 1e9 and costs.result == 0:  # then nothing changes the order
        dearer = replace(costs, **{cost: getattr(costs, cost) + 1})
        assert simulate(dearer, states, workers).wall >= wall - 1e-9


def test_the_issues_job():
    costs = Costs(prognostic=0.05, diagnostic=0.2)
    assert floor(costs, 41, 4) == pytest.approx(2.2)
    assert simulate(costs, 41, 4).wall == pytest.approx(2.2)


def test_a_driver_saturates_where_its_own_code_takes_all_its_time():
    costs = Costs(prognostic=0.0, diagnostic=1.0, submit=0.004, result=0.006)
    assert capacities(costs)["the driver's own code"] == pytest.approx(100)
    assert simulate(costs, 2000, 400).wall == pytest.approx(2000 * 0.01, rel=0.1)


def test_two_drivers_halve_what_one_prognostic_limits():
    costs = Costs(prognostic=1.0, diagnostic=1.0)
    one, two = (divided(costs, 50, 8, forecasts=4, drivers=k) for k in (1, 2))
    assert one.wall == pytest.approx(200)
    assert two.wall == pytest.approx(100)
    assert divided(costs, 50, 8, forecasts=4, drivers=5) is None


def test_ten_thousand_workers_take_turns():
    costs = Costs(prognostic=0.0001, diagnostic=2.0)
    outcome = simulate(costs, 20_000, 10_000)
    assert len(outcome.written) == 20_000
    assert len({worker for _, worker in outcome.written}) == 10_000
