"""One application, in one process, with ranks of its own and under torchrun: the same results."""

import itertools

import pytest

pytestmark = pytest.mark.timeout(900)
SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ("alone", "torchrun")]


@pytest.fixture(scope="module", params=["own", *SLOW])
def app(request, run):
    """A run of the application in one process, with its own ranks, or under torchrun."""
    if request.param == "alone":
        done = run("surface.py")
    elif request.param == "own":
        done = run("surface.py", 3)
    else:
        done = run("surface.py", torchrun=3)
    assert done.status == 0, done.err
    return done


@pytest.fixture
def alone(app):
    return app["workers"] == [0]


def is_torchrun(request):
    return request.node.callspec.params["app"] == "torchrun"


def test_nothing_is_printed_on_stderr(app, alone, request):
    lines = [line for line in app.err.splitlines() if line.strip()]
    if is_torchrun(request):  # its own warning about OMP_NUM_THREADS
        lines = [line for line in lines if "torch" not in line and "****" not in line]
        lines = [line for line in lines if "OMP_NUM_THREADS" not in line]
    assert lines == []


def test_futures_are_those_of_the_standard_library(app):
    assert app["wait"] == [7, 0]
    assert app["as_completed"] == app["in order"] == [6.0 * i for i in range(7)]


def test_results_are_host_tensors_and_coords(app):
    assert app["state"] == [
        [10.0, 12.0, 14.0, 16.0],
        ["time", "lead_time", "variable", "lat", "lon"],
        "12 hours",
    ]
    assert app["result"] == ["cpu", True, True, False]


def test_the_arguments_may_be_changed_after_submit(app):
    assert app["overwritten"] == [[[2.0 * i], i] for i in range(5)]


def test_maps_are_ordered_and_end_with_the_shortest(app):
    assert app["map"] == app["starmap"] == [2.0 * i for i in range(9)]
    assert app["map of two"] == [[0.0, "a"], [2.0, "b"], [4.0, "c"]]


def test_unordered_gives_the_same_results(app):
    assert app["unordered"] == app["starmap"]


@pytest.mark.parametrize("buffersize", [1, 3, None])
def test_arguments_are_taken_no_further_ahead_than_buffersize(app, alone, buffersize):
    bound = buffersize or (2 if alone else 4)
    assert app[f"ahead {buffersize}"] == [bound, 20]


def test_an_endless_iterable_is_accepted(app):
    assert app["endless"] == [0.0, 0.0, 0.0]


def test_a_buffersize_of_zero_is_refused(app):
    assert app["no buffer"] == "ValueError"


def test_other_methods_run_on_one_rank_or_on_all(app):
    assert app["ranks"] == app["one rank"] == app["workers"]
    assert app["arguments"] == 5.0
    assert app["no such rank"]["kind"] == "ConfigError"
    assert "rank 99" in app["no such rank"]["text"]
    assert str(app["workers"]) in app["no such rank"]["text"]
    assert app["no such method"]["kind"] == "TaskError"
    assert "Scale.nothing" in app["no such method"]["text"]


def test_the_distributed_manager_is_right_on_every_rank(app, alone):
    nranks = 1 if alone else 3
    expected = [[rank, nranks, rank, not alone] for rank in range(nranks)]
    managers = app["managers"] if alone else [app["own manager"], *app["managers"]]
    assert [manager[:4] for manager in managers] == expected


def test_only_the_variables_and_region_that_a_model_needs_are_sent(app):
    shape, coords_shape, variables, values = app["selected"]
    assert shape == coords_shape == [1, 1, 2, 5, 36]
    assert variables == app["output coords"] == ["t2m", "u10m"]
    assert values == [2.0, 0.0]
    assert app["too little"]["kind"] == "ConfigError"
    assert "Picky needs the variables t2m" in app["too little"]["text"]


def test_several_models_share_the_workers(app):
    results = {"double": [], "minus": []}
    for name, value in app["shared"]:
        results[name].append(value)
    assert results == {
        "double": [2.0 * i for i in range(8)],
        "minus": [-1.0 * i for i in range(8)],
    }


def test_remote_ranks_restricts_a_model(app):
    last = app["workers"][-1]
    assert app["restricted"] == [last]
    assert [rank for name, rank in app["shared ranks"] if name == "minus"] == [last]


def test_a_worker_computes_one_task_at_a_time(app):
    events = [event for event in app["events"] if event[0] == "diagnose"]
    assert {rank for _, rank, _, _ in events} == set(app["workers"])
    for worker in app["workers"]:
        times = sorted((start, end) for _, rank, start, end in events if rank == worker)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


def test_results_of_queued_calls_are_kept_until_they_are_read(app):
    assert app["unread"] == [2.0 * i for i in range(5)]


def test_calls_are_queued_and_read_side_by_side(app):
    assert app["pipeline"] == [None, [2.0 * i for i in range(12)]]


def test_an_error_in_a_pipeline_wakes_the_others(app):
    assert (app["pipeline error"]["kind"], app["pipeline error"]["text"]) == ("KeyError", "'level'")
    assert app["after it"]["kind"] == "KeyError"


def test_a_model_needs_a_session_and_sessions_do_not_nest(app):
    assert app["no session"]["kind"] == app["second session"]["kind"] == "SessionError"
    assert "no session is open" in app["no session"]["text"]
    assert "open already" in app["second session"]["text"]


def test_a_model_that_was_shut_down_takes_no_calls(app):
    assert app["shut down"]["kind"] == "SessionError"
    assert "Scale" in app["shut down"]["text"]


def test_a_second_session_works_after_a_broken_one(app):
    """In the form of Earth2Studio's proposed interface, which starts no ranks itself."""
    assert app["again unread"] == [3.0 * i for i in range(5)]
    assert app["again pipeline"] == [None, [3.0 * i for i in range(12)]]


def overlap(one, other):
    return one[2] < other[3] and other[2] < one[3]


def test_workers_compute_side_by_side_and_beside_the_forecast(app, alone):
    if alone:
        assert "met" not in app.reported
        return
    assert app["met"] == ["a", "b"]
    diagnoses = [event for event in app["events"] if event[0] == "diagnose"]
    pairs = itertools.combinations(diagnoses, 2)
    assert any(a[1] != b[1] and overlap(a, b) for a, b in pairs)
    (forecast,) = [event for event in app["events"] if event[0] == "forecast"]
    assert any(overlap(forecast, event) for event in diagnoses)


def test_results_come_as_they_are_done(app, alone):
    if not alone:
        assert app["first"] == ["fast", "slow"]
        assert app["unordered first"] == ["fast", "slow again"]


def test_nothing_listens_beyond_loopback(app, alone, request):
    ranks = app["pids"]
    listening = {int(pid): addresses for pid, addresses in app["listening"].items()}
    if is_torchrun(request):  # the agent's own listeners are torchrun's
        listening = {pid: listening[pid] for pid in ranks}
    assert set(ranks) <= set(listening)
    addresses = set(itertools.chain(*listening.values()))
    assert addresses == (set() if alone else {"127.0.0.1"})
