"""Farm: whatever happens to the workers, every future is done in the end, and only once."""

import threading
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.errors import CallTimeout, SessionError, StateLost, TaskError, TaskLost, WorkerLost
from distinf.farm.farm import Farm
from distinf.transport import Call, Failure, InProcess, Remote, Worker
from tests.fake_transport import FakeTransport, reply

DEADLINE = 8.0  # of what takes no time


def task(number):
    return Call(0, "__forward__", f"task {number}", (number,))


def done_by(transport):
    """Numbers of the tasks that a transport was given."""
    return [call.args[0] for _, call in transport.sent if call.method == "__forward__"]


def farm_of(workers, works="fallback", **options):
    here = FakeTransport([0], reply)
    carrier = FakeTransport(workers, own=here)
    farm = Farm(carrier, driver_works=works, **options)
    assert farm.new_model() == 0
    for rank in workers:
        built = farm.call(rank, Call(0, "__build__", "construction", (dict,)))
        carrier.open[rank].pop()[1].set_result(reply(rank, Call(0, "__build__")))
        built.result(DEADLINE)
    return farm, carrier, here


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["submit", "submit", "answer", "connection", "silence", "deadline", "raise"]
        ),
        st.integers(0, 9),
        st.sampled_from([None, None, frozenset({1}), frozenset({2, 3})]),
    ),
    min_size=12,
    max_size=40,
)


@settings(max_examples=300)
@given(
    workers=st.integers(1, 3),
    depth=st.integers(1, 2),
    attempts=st.integers(2, 3),
    works=st.sampled_from(["never", "fallback"]),
    events=EVENTS,
)
def test_every_task_ends_whatever_is_lost(workers, depth, attempts, works, events):
    ranks = range(1, workers + 1)
    farm, carrier, here = farm_of(
        ranks, works, depth=depth, max_attempts=attempts, skip_errors=True
    )
    futures, raised, lost = [], set(), set()

    def end(rank, how):
        call, answer = carrier.open[rank].pop(0)
        if how == "raise":
            raised.add(call.args[0])
            answer.set_result(reply(rank, call, Failure("f", "ValueError", "no", "")))
        elif how == "answer":
            answer.set_result(reply(rank, call))
        else:
            lost.add(rank)
            kinds = {"connection": WorkerLost(rank, "gone"), "deadline": CallTimeout("late")}
            answer.set_exception(kinds[how])

    for what, which, limit in events:
        busy = [rank for rank in ranks if carrier.open[rank]]
        left = [rank for rank in farm.workers if rank]
        if what == "submit":
            allowed = left if limit is None else [r for r in left if r in limit]
            # Only where it need not wait: there is nobody here to end what it would wait for.
            if any(len(farm._dispatcher.on(rank)) < depth for rank in allowed):
                futures.append(farm.submit(task(len(futures)), 0, limit))
        elif what == "silence":
            if left:
                lost.add(left[which % len(left)])
                farm.mark_lost(left[which % len(left)], "silent")
        elif busy:
            end(busy[which % len(busy)], what)
    while busy := [rank for rank in ranks if carrier.open[rank]]:
        end(busy[0], "answer")

    for number, future in enumerate(futures):
        error = future.exception(DEADLINE)
        if error is None:
            assert future.result() == number
        elif isinstance(error, TaskError):
            assert number in raised
        elif isinstance(error, TaskLost):
            assert len(lost) >= attempts
        else:
            assert isinstance(error, SessionError)
            assert works == "never"
            assert "no worker is left" in str(error)
    assert len(set(done_by(here))) == len(done_by(here)), "the driver did a task twice"


def test_the_driver_takes_what_waits_for_a_full_worker():
    farm, carrier, here = farm_of([1, 2, 3], depth=1)
    futures = [farm.submit(task(number), 0, None) for number in range(3)]
    for rank in (1, 2, 3):  # each but the last while the others are full
        carrier.open[rank].pop()[1].set_exception(WorkerLost(rank, "killed"))
    assert [future.result(DEADLINE) for future in futures] == [0, 1, 2]
    assert sorted(done_by(here)) == [0, 1, 2]


def test_an_idle_driver_takes_a_task_instead_of_waiting():
    farm, carrier, here = farm_of([1], "idle", depth=1)
    first = farm.submit(task(0), 0, None)
    assert farm.submit(task(1), 0, None).result(DEADLINE) == 1
    assert done_by(here) == [1]
    call, answer = carrier.open[1].pop()
    answer.set_result(reply(1, call))
    assert first.result(DEADLINE) == 0


def test_a_model_is_constructed_on_the_driver_after_the_last_worker():
    farm, _, here = farm_of([1])
    farm.mark_lost(1, "gone")
    number = farm.new_model()
    farm.call(0, Call(number, "__build__", "construction", (dict,))).result(DEADLINE)
    assert farm.submit(Call(number, "__forward__", "task 0", (7,)), 0, None).result(DEADLINE) == 7
    farm.call(0, Call(number, "__drop__")).result(DEADLINE)
    assert [call.method for _, call in here.sent] == ["__build__", "__forward__", "__drop__"]


def test_a_model_that_the_driver_never_ran_is_not_constructed_to_be_dropped():
    farm, _, here = farm_of([1])
    farm.mark_lost(1, "gone")
    farm.call(0, Call(0, "__drop__")).result(DEADLINE)
    assert [call.method for _, call in here.sent] == ["__drop__"]


def test_an_error_wakes_who_waits_to_submit():
    farm, carrier, _ = farm_of([1], "never", depth=1)
    first = farm.submit(task(0), 0, None)
    caught = Future()

    def submit():
        try:
            farm.submit(task(1), 0, None)
        except TaskError as error:
            caught.set_result(error)

    waiting = threading.Thread(target=submit, daemon=True)
    waiting.start()
    call, answer = carrier.open[1].pop()
    answer.set_result(reply(1, call, Failure("f", "ValueError", "no", "")))
    assert "ValueError: no" in str(caught.result(DEADLINE))
    assert isinstance(first.exception(DEADLINE), TaskError)


@pytest.mark.parametrize("number", [1, 2])
def test_a_task_is_not_sent_to_lost_workers(number):
    farm, carrier, _ = farm_of([1, 2], "never")
    farm.mark_lost(number, "stopped")
    for i in range(2):
        farm.submit(task(i), 0, None)
    assert len(carrier.open[3 - number]) == 2
    assert not carrier.open[number]


def test_a_worker_may_be_lost_after_the_session_broke():
    farm, *_ = farm_of([1, 2], "never")
    open_task = farm.submit(task(0), 0, None)
    farm.fail(RuntimeError("closed"))
    farm.mark_lost(1, "gone")
    farm.mark_lost(2, "gone")
    assert farm.workers == ()
    assert str(open_task.exception(DEADLINE)) == "closed"


@pytest.mark.parametrize("works", ["fallback", "idle"])
def test_a_call_that_hangs_on_the_driver_ends_the_run(works):
    ended = threading.Event()

    class Hanging:
        def forward(self, number):
            ended.wait(60)

    here = InProcess(Worker(0, torch.device("cpu")))
    farm = Farm(FakeTransport([1], own=here), call_timeout=0.2, driver_works=works, depth=1)
    farm.call(1, Call(0, "__build__", "construction", (Hanging,)))
    first = farm.submit(task(0), 0, None)
    try:
        if works == "idle":
            with pytest.raises(CallTimeout, match=r"task 1 on rank 0: no answer in 0\.2 s"):
                farm.submit(task(1), 0, None)
        else:
            farm.mark_lost(1, "gone")
            assert "no worker is left" in str(first.exception(DEADLINE))
            assert "on rank 0: no answer in 0.2 s" in str(first.exception())
    finally:
        ended.set()


@pytest.mark.parametrize("works", ["fallback", "idle"])
def test_the_driver_takes_a_task_whose_workers_were_lost_before_it(works):
    farm, _, here = farm_of([1, 2, 3], works)
    farm.mark_lost(3, "out of memory")
    assert farm.submit(task(0), 0, frozenset({3})).result(DEADLINE) == 0
    assert done_by(here) == [0]


def test_a_call_to_a_worker_that_is_lost_ends():
    farm, carrier, _ = farm_of([1, 2])
    waiting = [farm.call(rank, Call(0, "coords", "coords"), in_time=False) for rank in (1, 2)]
    farm.mark_lost(2, "it has given no sign of life for 60 s")  # its connection stays open
    with pytest.raises(WorkerLost, match="rank 2 was lost: it has given no sign of life"):
        waiting[1].result(DEADLINE)
    assert not waiting[0].done()
    call, answer = carrier.open[2].pop()
    answer.set_result(reply(2, call))  # too late


def kept_by(rank, number=0):
    state = Remote(rank, number, (1,), torch.float32)
    return Call(0, "__forward__", f"task {number}", (state,))


def test_a_rank_that_is_set_apart_keeps_states_for_the_others():
    farm, carrier, _ = farm_of([1, 2, 3])
    farm.set_apart(3)
    assert farm.workers == farm.may_diagnose == (1, 2)
    futures = [farm.submit(kept_by(3, n), 4, None) for n in range(4)]
    assert sorted(rank for rank, call in carrier.sent[-4:]) == [1, 1, 2, 2]
    for rank in (1, 2):
        for call, answer in carrier.open[rank]:
            answer.set_result(reply(rank, call))
    assert all(future.result(DEADLINE).rank == 3 for future in futures)


def test_the_tasks_of_a_state_that_is_lost_are_given_up():
    """However that is found out, and the session goes on."""
    farm, carrier, _ = farm_of([1, 2, 3])
    farm.set_apart(3)
    first, second, third = (farm.submit(kept_by(3, n), 4, None) for n in range(3))
    call, answer = carrier.open[1].pop(0)
    answer.set_result(reply(1, call, Failure("f", "StateLost", "rank 3 does not answer", "")))
    with pytest.raises(StateLost, match="task 0 was lost with rank 3"):
        first.result(DEADLINE)
    assert 3 not in farm.lives()
    with pytest.raises(StateLost):
        farm.submit(kept_by(3, 4), 4, None).result(DEADLINE)
    for rank in (1, 2):  # without anyone left who may run them
        farm.mark_lost(rank, "gone")
    own = farm.submit(task(5), 4, None)
    assert own.result(DEADLINE) == 5
    for future in (second, third):
        if not future.done():
            continue
        assert future.exception() is None or isinstance(future.exception(), StateLost)


def test_the_driver_that_took_the_place_of_lost_workers_may_stay_at_home():
    running = threading.Event()

    class Slow:
        def forward(self, number):
            running.wait(60)
            return number

    here = InProcess(Worker(0, torch.device("cpu")))
    farm = Farm(FakeTransport([1], own=here), driver_works="fallback", depth=1)
    farm.call(1, Call(0, "__build__", "construction", (Slow,)))
    farm.mark_lost(1, "gone")
    future = farm.submit(task(7), 0, None)
    farm.stay_at_home()
    running.set()
    assert future.result(DEADLINE) == 7


def test_tasks_stay_at_home():
    farm, carrier, here = farm_of([1, 2])
    farm.call(0, Call(0, "__build__", "construction", (dict,))).result(DEADLINE)
    farm.stay_at_home()
    futures = [farm.submit(kept_by(rank, 10 + rank), 4, None) for rank in (0, 1, 2, 1)]
    assert [rank for rank, call in carrier.sent[-3:]] == [1, 2, 1]
    assert [farm.has_room_at_home(rank) for rank in (1, 2)] == [False, True]
    futures.append(farm.submit(kept_by(1, 14), 4, None))  # all of one state are handed out at once
    assert carrier.sent[-1][0] == 1
    assert futures[0].result(DEADLINE).number == 10
    assert [call.args[0].rank for _, call in here.sent if call.method == "__forward__"] == [0]
    farm.mark_lost(1, "gone")
    for future in (futures[1], futures[3], futures[4]):
        with pytest.raises(StateLost):
            future.result(DEADLINE)
