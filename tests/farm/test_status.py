"""What a farm says of its workers at one moment."""

from concurrent.futures import Future

from distinf.background import in_background
from distinf.farm import Farm, Pulse
from distinf.report import Status
from distinf.transport import Call
from tests.fake_transport import FakeTransport, reply
from tests.waiting import until


def task(number):
    return Call(0, "__forward__", f"task {number}", (number,))


def farm_of(workers, may_join=(), **options):
    carrier = FakeTransport(workers, own=FakeTransport([0], reply), may_join=may_join)
    return Farm(carrier, **options), carrier


def answer(carrier, rank):
    call, future = carrier.open[rank].pop(0)
    future.set_result(reply(rank, call))


def test_it_counts_what_is_on_the_workers_and_who_waits():
    farm, carrier = farm_of([1, 2])
    assert farm.status() == Status(2)
    for number, (busy, queued) in enumerate([(1, 0), (2, 0), (2, 1), (2, 2)]):
        farm.submit(task(number), 0, None)
        assert farm.status() == Status(2, busy, queued)
    fifth = in_background(lambda: farm.submit(task(4), 0, None), "test")
    until(lambda: farm.status().full)
    answer(carrier, 1)
    fifth.result(5)
    assert farm.status() == Status(2, 2, 2)


def test_it_names_the_lost_and_counts_what_was_tried_again():
    farm, _ = farm_of([1, 2, 3])
    for number in range(6):
        farm.submit(task(number), 0, None)
    farm.mark_lost(2, "killed")
    status = farm.status()
    assert status == Status(2, 2, 4, lost=(2,), losses=1)  # its tasks wait for a free slot
    assert status.trouble == ["rank 2 lost"]


def test_an_attempt_counts_when_it_begins():
    farm, carrier = farm_of([1, 2], depth=1)
    farm.submit(task(0), 0, None)
    farm.submit(task(1), 0, None)
    farm.mark_lost(1, "killed")
    assert farm.status().retried == 0
    answer(carrier, 2)
    assert farm.status() == Status(1, 1, lost=(1,), losses=1, retried=1)
    assert farm.status().trouble == ["rank 1 lost", "1 task tried again"]


def test_a_rank_that_came_back_is_no_longer_lost():
    farm, carrier = farm_of([1, 2], [1, 2])
    farm.mark_lost(1, "preempted")
    assert farm.status().lost == (1,)
    carrier.join(1)
    assert farm.status() == Status(2, losses=1)


def test_workers_that_end_with_the_session_are_not_lost():
    farm, _ = farm_of([1])
    farm.fail(RuntimeError("it ends"))
    farm.mark_lost(1, "its connection ended")
    assert farm.status().losses == 0


def test_a_task_that_the_driver_runs_waits_for_a_worker():
    farm, carrier = farm_of([1], driver_works="idle", depth=1)
    seen = []

    def send(call, timeout):
        seen.append(farm.status())
        done = Future()
        done.set_result(reply(0, call))
        return done

    carrier.on_driver.send = send
    farm.submit(task(0), 0, None)
    farm.submit(task(1), 0, None)
    assert seen[0].full
    assert farm.status() == Status(1, 1)


def test_a_late_sign_of_life_is_seen_before_the_worker_is_lost():
    farm, carrier = farm_of([1, 2])
    pings, lost = {1: [], 2: []}, []

    def ping(rank, timeout):
        pings[rank].append(Future())
        if rank == 2:
            pings[rank][-1].set_result(None)
        return pings[rank][-1]

    carrier.ping = ping
    pulse = Pulse(carrier, farm.lives, 0.4, lambda rank, reason: lost.append(rank))
    farm.silent = pulse.silent
    try:
        until(lambda: pings[1])
        assert farm.status().silent == {}
        until(lambda: farm.status().silent)
        assert list(farm.status().silent) == [1]
        assert 0.04 < farm.status().silent[1] < 10
        assert lost == []
        pings[1][0].set_result(None)
        assert farm.status().silent == {}
        until(lambda: len(pings[1]) > 1 and farm.status().silent)
        farm.mark_lost(1, "gone")
        assert farm.status().silent == {}
    finally:
        pulse.stop()
