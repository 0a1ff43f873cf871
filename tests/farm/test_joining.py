"""Workers that join: they get all models before tasks, and each life of them counts for itself."""

from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.background import in_background
from distinf.errors import CallTimeout, SessionError, TaskError, WorkerLost
from distinf.farm import Farm, Pulse
from distinf.farm.residents import SetUp
from distinf.inference import DistributedInference, inference
from distinf.transport import Call, Failure
from tests.fake_transport import FakeTransport, reply
from tests.waiting import until

DEADLINE = 8.0  # of what takes no time
BROKEN = Failure("constructing x", "ValueError", "no disk", "")


def task(number):
    return Call(0, "__forward__", f"task {number}", (number,))


def answer(carrier, rank, failure=None):
    """Answer the oldest call that is open on a rank."""
    call, future = carrier.open[rank].pop(0)
    future.set_result(reply(rank, call, failure))
    return call.method, call.model


def open_on(carrier, rank):
    return [(call.method, call.model) for call, _ in carrier.open[rank]]


def lose(carrier, rank):
    """End a worker's process, and with it all calls on it."""
    calls, carrier.open[rank] = carrier.open[rank], []
    for _, future in calls:
        future.set_exception(WorkerLost(rank, "its process ended"))


def farm_of(workers, may_join, models=1, works="never", **options):
    """A farm with this many models on the workers that are there."""
    carrier = FakeTransport(workers, own=FakeTransport([0], reply), may_join=may_join)
    farm = Farm(carrier, driver_works=works, **options)
    for _ in range(models):
        built = construct(farm)
        for rank in workers:
            until(lambda rank=rank: carrier.open[rank])
            answer(carrier, rank)
        if workers:
            built.result(DEADLINE)
    return farm, carrier


def construct(farm, ranks=None):
    number = farm.new_model()
    build = Call(number, "__build__", "construction", (dict,))
    return in_background(lambda: farm.set_up(number, lambda rank: build, ranks), "test")


@contextmanager
def session_of(farm, monkeypatch):
    class Session:
        pass

    Session.farm = farm
    monkeypatch.setattr(inference, "current_session", lambda: Session)
    yield
    farm.fail(SessionError("the session is closed"))


def test_tasks_of_a_lost_worker_run_on_it_when_it_is_back(said):
    farm, carrier = farm_of([1], [1], models=2)
    futures = [farm.submit(task(number), 0, None) for number in range(2)]
    lose(carrier, 1)
    assert farm.workers == ()
    assert not any(future.done() for future in futures)
    carrier.join(1)
    for model in (0, 1):
        assert open_on(carrier, 1) == [("__build__", model)]
        assert farm.workers == ()
        answer(carrier, 1)
    assert farm.workers == (1,)
    for _ in futures:
        answer(carrier, 1)
    assert [future.result(DEADLINE) for future in futures] == [0, 1]
    assert sum(line.startswith("rank 1 was lost") for line in said()) == 1


def test_a_submitter_waits_while_all_are_gone():
    farm, carrier = farm_of([1], [1])
    farm.mark_lost(1, "preempted")
    submitted = in_background(lambda: farm.submit(task(0), 0, None), "test")
    carrier.join(1)
    answer(carrier, 1)
    until(lambda: carrier.open[1])
    answer(carrier, 1)
    assert submitted.result(DEADLINE).result(DEADLINE) == 0


def test_a_worker_that_joins_in_the_middle_gets_tasks():
    farm, carrier = farm_of([1], [2], depth=1)
    assert farm.places == (1, 2)
    first = farm.submit(task(0), 0, None)
    carrier.join(2)
    answer(carrier, 2)
    assert farm.workers == (1, 2)
    second = farm.submit(task(1), 0, None)  # rank 1 is full
    answer(carrier, 2)
    assert second.result(DEADLINE) == 1
    assert not first.done()


def test_it_gets_the_models_of_its_rank_and_what_was_set_up_on_them():
    farm, carrier = farm_of([1], [2, 3])
    elsewhere = construct(farm, frozenset({1, 3}))
    until(lambda: carrier.open[1])
    answer(carrier, 1)
    elsewhere.result(DEADLINE)
    ready = in_background(
        lambda: farm.set_up(0, lambda rank: Call(0, "write_to", "", (rank,)), None), "test"
    )
    until(lambda: carrier.open[1])
    answer(carrier, 1)
    assert ready.result(DEADLINE) == [1]
    for rank in (2, 3):
        carrier.join(rank)
        while carrier.open[rank]:
            answer(carrier, rank)
    sent = {rank: [(c.method, c.model) for r, c in carrier.sent if r == rank] for rank in (2, 3)}
    assert sent[2] == [("__build__", 0), ("write_to", 0)]
    assert sent[3] == [("__build__", 0), ("write_to", 0), ("__build__", 1)]
    assert [c.args for r, c in carrier.sent if r == 3 and c.method == "write_to"] == [(3,)]
    assert farm.workers == (1, 2, 3)


def test_a_model_constructed_while_a_worker_joins_is_there():
    farm, carrier = farm_of([1], [2])
    carrier.join(2)
    built = construct(farm)
    until(lambda: carrier.open[1])
    answer(carrier, 1)
    built.result(DEADLINE)  # it does not wait for the one that joins
    assert [answer(carrier, 2), answer(carrier, 2)] == [("__build__", 0), ("__build__", 1)]
    assert farm.workers == (1, 2)


def test_a_model_dropped_while_a_worker_joins_is_not_left_over():
    farm, carrier = farm_of([1], [2], models=2)
    carrier.join(2)
    farm.forget(0)
    assert answer(carrier, 2) == ("__build__", 0)
    assert answer(carrier, 2) == ("__drop__", 0)
    assert answer(carrier, 2) == ("__build__", 1)
    assert farm.workers == (1, 2)
    assert not carrier.open[2]


@pytest.mark.parametrize("late", ["value", "loss", "deadline"])
def test_a_late_answer_of_an_earlier_life_is_ignored(late):
    farm, carrier = farm_of([1], [1], depth=1)
    future = farm.submit(task(0), 0, None)
    _, earlier = carrier.open[1].pop()
    farm.mark_lost(1, "preempted")
    carrier.join(1)
    answer(carrier, 1)
    assert open_on(carrier, 1) == [("__forward__", 0)]
    if late == "value":
        earlier.set_result(reply(1, Call(0, "__forward__", "", ("wrong",))))
    else:
        errors = {"loss": WorkerLost(1, "its process ended"), "deadline": CallTimeout("late")}
        earlier.set_exception(errors[late])
    assert farm.workers == (1,)
    assert carrier.lost == set()
    assert not future.done()
    answer(carrier, 1)
    assert future.result(DEADLINE) == 0


def test_a_ping_of_an_earlier_life_loses_nobody():
    farm, carrier = farm_of([1], [1])
    pings, lost = [], []

    def ping(rank, timeout):
        pings.append(Future())
        return pings[-1]

    carrier.ping = ping
    pulse = Pulse(carrier, farm.lives, 0.04, lambda rank, reason: lost.append(rank))
    try:
        until(lambda: pings)
        pings[0].set_exception(CallTimeout("one missed ping is normal"))
        farm.mark_lost(1, "preempted")
        carrier.join(1)
        until(lambda: len(pings) > 2)  # of the new life, which has no models yet
        pings[1].set_exception(CallTimeout("late"))
        assert lost == []
        pings[2].set_exception(CallTimeout("late"))
        pings[3].set_exception(CallTimeout("late"))
        assert lost == [1]
    finally:
        pulse.stop()


def test_a_worker_that_came_back_unnoticed_gets_its_tasks_again():
    farm, carrier = farm_of([1], [1], depth=1)
    future = farm.submit(task(0), 0, None)
    carrier.join(1)
    assert carrier.lost == set()  # nobody tells the transport that the new one is lost
    assert answer(carrier, 1) == ("__build__", 0)
    assert answer(carrier, 1) == ("__forward__", 0)
    assert future.result(DEADLINE) == 0


def test_a_worker_may_be_lost_before_a_task_is_sent_to_it():
    farm, carrier = farm_of([1, 2, 3], [], depth=1)
    future = farm.submit(task(0), 0, None)
    carrier.mark_lost = lambda rank: farm.mark_lost(2, "gone, too")
    farm.mark_lost(1, "gone")
    assert not carrier.open[2]
    answer(carrier, 3)
    assert future.result(DEADLINE) == 0


def test_a_worker_that_is_lost_while_it_joins_may_come_again(caplog):
    farm, carrier = farm_of([1], [1])
    farm.mark_lost(1, "preempted")
    for _ in range(2):
        carrier.join(1)
        assert open_on(carrier, 1) == [("__build__", 0)]
        lose(carrier, 1)
        assert carrier.lost == {1}
    carrier.join(1)
    answer(carrier, 1)
    assert farm.workers == (1,)
    assert "left out" not in caplog.text


def test_a_worker_on_which_a_model_fails_is_left_out(caplog):
    farm, carrier = farm_of([1], [2], models=2)
    carrier.join(2)
    answer(carrier, 2, BROKEN)
    assert farm.workers == (1,)
    assert not carrier.open[2]
    assert caplog.text.count("rank 2 is left out: constructing x failed for construction") == 1
    assert "ValueError: no disk" in caplog.text
    carrier.join(2)  # another process
    assert not carrier.open[2]


def test_who_waits_for_a_worker_that_is_left_out_is_told():
    farm, carrier = farm_of([1], [1], depth=1)
    future = farm.submit(task(0), 0, None)
    lose(carrier, 1)
    carrier.join(1)
    answer(carrier, 1, BROKEN)
    assert "no worker is left" in str(future.exception(DEADLINE))


def test_who_waits_for_a_worker_that_does_not_come_back_is_told():
    farm, carrier = farm_of([1, 2], [1, 2], depth=1)
    waiting, elsewhere = (farm.submit(task(0), 0, frozenset({rank})) for rank in (1, 2))
    lose(carrier, 1)
    assert not waiting.done()
    carrier.gone(1)
    assert "no worker is left" in str(waiting.exception(DEADLINE))
    with pytest.raises(SessionError, match="no worker is left"):
        farm.submit(task(2), 0, frozenset({1}))
    carrier.gone(2)  # though its loss is not noticed otherwise
    assert "no worker is left" in str(elsewhere.exception(DEADLINE))


def test_the_driver_steps_in_for_a_worker_that_does_not_come_back():
    farm, carrier = farm_of([1], [1], works="fallback", depth=1)
    future = farm.submit(task(0), 0, None)
    lose(carrier, 1)
    carrier.gone(1)
    assert farm.workers == (0,)
    assert future.result(DEADLINE) == 0


def test_the_driver_steps_in_only_when_nobody_may_join():
    farm, carrier = farm_of([1], [1], works="fallback", depth=1)
    future = farm.submit(task(0), 0, None)
    lose(carrier, 1)
    assert farm.workers == ()
    carrier.join(1)
    answer(carrier, 1, BROKEN)
    assert farm.workers == (0,)
    assert future.result(DEADLINE) == 0


def test_the_deadline_ends_the_wait():
    farm, carrier = farm_of([1, 2], [1, 2], min_workers=2, wait_for_workers=0.3, depth=1)
    assert farm.status().waiting == ""
    waiting = farm.submit(task(0), 0, frozenset({1}))
    running = farm.submit(task(1), 0, frozenset({2}))
    lose(carrier, 1)
    assert farm.status().waiting == "waiting for workers: 1 of 2"
    error = waiting.exception(DEADLINE)
    assert isinstance(error, SessionError)
    assert str(error) == (
        "waiting for workers: 1 of 2 for 0.3 s, no longer (runtime.wait_for_workers)"
    )
    with pytest.raises(SessionError, match=r"runtime\.wait_for_workers"):
        farm.submit(task(2), 0, None)
    answer(carrier, 2)
    assert running.result(DEADLINE) == 1


def test_the_deadline_runs_at_the_start():
    farm, _ = farm_of([], [1], models=0, wait_for_workers=0.05)
    with pytest.raises(SessionError, match=r"0 of 1 for 0\.05 s.*runtime\.wait_for_workers"):
        construct(farm).result(DEADLINE)


def test_the_deadline_is_over_when_enough_are_there():
    farm, carrier = farm_of([], [1], models=2, wait_for_workers=60)
    timer = farm._patience._timer
    until(lambda: len(farm._residents._models) == 2)
    carrier.join(1)
    for _ in range(2):
        assert farm.status().waiting == "waiting for workers: 0 of 1"  # until it has its models
        answer(carrier, 1)
    assert farm.status().waiting == ""
    assert timer.finished.is_set()
    farm._patience._timer = None
    timer.function()  # it passed at the same moment
    farm.check()


def test_without_workers_that_may_join_there_is_no_deadline():
    farm, _ = farm_of([1], [], min_workers=3, wait_for_workers=0.01)
    assert farm._patience._timer is None
    assert farm.status().waiting == ""


def test_an_error_does_not_wait_for_workers():
    farm, carrier = farm_of([1, 2], [1, 2], depth=1)
    waiting = farm.submit(task(0), 0, frozenset({1}))
    failing = farm.submit(task(1), 0, None)
    lose(carrier, 1)
    answer(carrier, 2, Failure("f", "ValueError", "no", ""))
    assert isinstance(failing.exception(DEADLINE), TaskError)
    assert isinstance(waiting.exception(DEADLINE), TaskError)


class Model:
    def __init__(self, factor):
        pass


def test_a_model_waits_for_the_first_worker(monkeypatch):
    farm, carrier = farm_of([], [1, 2], models=0)
    with session_of(farm, monkeypatch):
        made = in_background(lambda: DistributedInference(Model, 2), "test")
        until(lambda: farm._residents._models)
        carrier.join(2)
        call, built = carrier.open[2].pop()
        assert call.args == (Model, 2)
        built.set_result(replace(reply(2, call), value=set()))
        assert made.result(DEADLINE).remote_ranks == [2]


def test_an_error_of_the_first_worker_that_joins_is_the_models(monkeypatch):
    farm, carrier = farm_of([], [1, 2], models=0)
    with session_of(farm, monkeypatch):
        made = in_background(lambda: DistributedInference(Model, 2), "test")
        until(lambda: farm._residents._models)
        carrier.join(2)
        answer(carrier, 2, BROKEN)
        with pytest.raises(TaskError, match="no disk"):
            made.result(DEADLINE)
        carrier.join(1)
        assert farm.workers == (1,)  # nobody constructs it there
        assert not carrier.open[1]


def test_a_worker_lost_during_construction_is_awaited():
    farm, carrier = farm_of([1], [1], models=0)
    built = construct(farm)
    until(lambda: carrier.open[1])
    lose(carrier, 1)
    carrier.join(1)
    answer(carrier, 1)
    assert built.result(DEADLINE) == [dict]


def test_a_model_may_be_limited_to_ranks_that_are_not_there_yet(monkeypatch):
    farm, carrier = farm_of([1], [2], models=0)
    with session_of(farm, monkeypatch):
        made = in_background(lambda: DistributedInference(Model, 2, remote_ranks=2), "test")
        until(lambda: farm._residents._models)
        carrier.join(2)
        call, built = carrier.open[2].pop()
        built.set_result(replace(reply(2, call), value=set()))
        assert made.result(DEADLINE).remote_ranks == [2]
        assert not carrier.open[1]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "answer", "lose", "join", "construct", "late"]),
        st.integers(0, 9),
        st.sampled_from([None, None, frozenset({1}), frozenset({2, 3})]),
    ),
    min_size=12,
    max_size=40,
)


@settings(max_examples=200)
@given(events=EVENTS, depth=st.integers(1, 2), there=st.integers(0, 3))
def test_every_task_ends_with_its_own_value_whoever_comes_and_goes(events, depth, there):
    ranks = (1, 2, 3)
    carrier = FakeTransport(ranks[:there], may_join=ranks)
    farm = Farm(carrier, depth=depth, max_attempts=100)
    built = {rank: set() for rank in ranks}
    futures, late = [], []

    def build(number, limit):
        # As `set_up` without its wait: there is nobody here to end it.
        call = Call(number, "__build__", "construction", (dict,))
        with farm._changed:
            farm._residents.add(number, SetUp(lambda rank: call), limit)
            present = farm._there(limit)
        for rank in present:
            farm.call(rank, call)

    def end(rank):
        call, future = carrier.open[rank].pop(0)
        if call.method == "__build__":
            built[rank].add(call.model)
        elif call.method == "__forward__":
            assert call.model in built[rank], "a task came before its model"
        future.set_result(reply(rank, call))

    build(farm.new_model(), None)
    for what, which, limit in events:
        busy = [rank for rank in ranks if carrier.open[rank]]
        rank = ranks[which % 3]
        if what == "submit":
            allowed = [r for r in farm.workers if limit is None or r in limit]
            if any(len(farm._dispatcher.on(r)) < depth for r in allowed):
                futures.append(farm.submit(task(len(futures)), 0, limit))
        elif what == "construct":
            build(farm.new_model(), limit)
        elif what == "lose" and rank not in carrier.lost:
            built[rank].clear()
            late += carrier.open[rank]
            farm.mark_lost(rank, "preempted")
            carrier.open[rank] = []
        elif what == "join" and rank in carrier.lost:
            carrier.join(rank)
        elif what == "late" and late:
            call, future = late.pop(which % len(late))
            future.set_result(reply(1, Call(call.model, call.method, "", ("wrong",))))
        elif what == "answer" and busy:
            end(busy[which % len(busy)])
    for rank in sorted(carrier.lost):
        carrier.join(rank)
    while busy := [rank for rank in ranks if carrier.open[rank]]:
        end(busy[0])
    assert farm.workers == ranks
    assert [future.result(DEADLINE) for future in futures] == list(range(len(futures)))
    for rank in ranks:
        assert built[rank] == {
            number
            for number, own in farm._residents._models.items()
            if own.ranks is None or rank in own.ranks
        }


@pytest.mark.parametrize("how", ["the first rank answers", "another rank has left"])
def test_a_replica_that_an_error_ends_while_it_joins_is_left_out(said, how):
    farm, carrier = farm_of([], [1], models=0)
    built = construct(farm)
    until(lambda: farm._residents.on(1))
    carrier.join(1)
    call, future = carrier.open[1].pop(0)
    last = reply(1, call, BROKEN, "group")
    if how == "the first rank answers":
        future.set_result(last)
    else:
        farm.mark_lost(1, "its group can no longer be used", last=last)
        future.set_exception(WorkerLost(1, "its process ended"))
    with pytest.raises(TaskError, match="no disk"):
        built.result(DEADLINE)
    carrier.join(1)  # Ray starts it again
    assert not carrier.open[1]
    assert farm.workers == ()
    assert [words for words in said() if "rank 1 is left out: constructing x failed" in words]
