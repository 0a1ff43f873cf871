"""A worker whose GPU fails every further call is a lost worker; on rank 0 the run ends."""

from dataclasses import replace

import pytest

from distinf.errors import SessionError, TaskError, TaskLost
from distinf.farm.farm import Farm
from distinf.transport import Call, Failure
from tests.fake_transport import FakeTransport, reply

POISONED = Failure("Model.forward", "AcceleratorError", "CUDA error: device-side assert", "trace")


def ranks(workers, poisoned, own=None):
    """A transport whose ranks answer at once, the poisoned ones as a GPU does after an assert."""

    def answer(rank, call):
        bad = rank in poisoned
        found = reply(rank, call, POISONED if bad else None, unusable="GPU" if bad else "")
        return replace(found, value=rank)

    return FakeTransport(workers, answer, own)


def forward(number=0):
    return Call(0, "__forward__", f"task {number}")


def test_its_task_goes_elsewhere(caplog):
    farm = Farm(ranks([1, 2], poisoned=[1]))
    assert [farm.submit(forward(i), 0, None).result(10) for i in range(3)] == [2, 2, 2]
    assert farm.workers == (2,)
    assert farm.transport.lost == {1}  # nobody waits for it at the end
    assert "its GPU can no longer be used: AcceleratorError: CUDA error" in caplog.text


def test_a_task_that_poisons_every_gpu_is_given_up():
    farm = Farm(ranks([1, 2, 3, 4], poisoned=[1, 2, 3]), max_attempts=3)
    with pytest.raises(TaskLost, match=r"attempt 3.*device-side assert"):
        farm.submit(forward(), 0, None).result(10)
    assert farm.workers == (4,)


def test_without_a_worker_left_the_run_says_why():
    farm = Farm(ranks([1], poisoned=[1]))
    with pytest.raises(SessionError, match=r"no worker is left.*device-side assert"):
        farm.submit(forward(), 0, None).result(10)


def test_it_is_lost_to_other_calls_too():
    farm = Farm(ranks([1, 2], poisoned=[1]))
    with pytest.raises(TaskError, match="device-side assert"):
        farm.call(1, Call(0, "__build__", args=(int,))).result(10)
    assert farm.workers == (2,)


@pytest.mark.parametrize("skip_errors", [True, False])
def test_an_error_that_breaks_a_group_is_told_and_costs_no_other_task_an_attempt(
    skip_errors, caplog
):
    carrier = FakeTransport([1, 2])
    farm = Farm(carrier, skip_errors=skip_errors, max_attempts=1)
    futures = [farm.submit(forward(i), 0, None) for i in range(4)]
    failure = Failure("Model.forward", "RuntimeError", "on rank 2: no humidity", "trace")
    call, answer = carrier.open[1].pop(0)
    answer.set_result(reply(1, call, failure, unusable="group"))
    with pytest.raises(TaskError, match="on rank 2: no humidity"):
        futures[0].result(10)
    assert farm.workers == (2,)
    assert carrier.lost == {1}
    while carrier.open[2]:
        call, answer = carrier.open[2].pop(0)
        answer.set_result(replace(reply(2, call), value=call.task))
    assert [future.result(10) for future in futures[1:]] == [f"task {i}" for i in range(1, 4)]
    if skip_errors:
        assert "its group can no longer be used: RuntimeError: on rank 2: no hum" in caplog.text
        farm.check()
    else:
        with pytest.raises(TaskError, match="on rank 2: no humidity"):
            farm.check()


def test_the_error_by_which_the_last_worker_leaves_is_that_of_the_run():
    carrier = FakeTransport([1])
    farm = Farm(carrier)
    farm.submit(forward(), 0, None)
    call, answer = carrier.open[1].pop()

    def submit_then(rank):
        """As another thread does that waited for room."""
        with pytest.raises(TaskError, match="no humidity"):
            farm.submit(forward(1), 0, None)
        carrier.lost.add(rank)

    carrier.mark_lost = submit_then
    failure = Failure("Model.forward", "RuntimeError", "on rank 2: no humidity", "trace")
    answer.set_result(reply(1, call, failure, unusable="group"))
    assert carrier.lost == {1}


def test_on_the_drivers_own_gpu_it_ends_the_run_even_if_errors_are_skipped():
    carrier = ranks([1], poisoned=[1], own=ranks([0], poisoned=[0]))
    carrier.on_driver._built.add(0)
    farm = Farm(carrier, skip_errors=True, driver_works="fallback")
    with pytest.raises(TaskError, match=r"on rank 0.*device-side assert"):
        farm.submit(forward(), 0, None).result(10)
    with pytest.raises(TaskError):
        farm.check()
