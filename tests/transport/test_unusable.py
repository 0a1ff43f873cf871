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
        return replace(reply(rank, call, POISONED if bad else None, unusable=bad), value=rank)

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


def test_on_the_drivers_own_gpu_it_ends_the_run_even_if_errors_are_skipped():
    carrier = ranks([1], poisoned=[1], own=ranks([0], poisoned=[0]))
    carrier.on_driver._built.add(0)
    farm = Farm(carrier, skip_errors=True, driver_works="fallback")
    with pytest.raises(TaskError, match=r"on rank 0.*device-side assert"):
        farm.submit(forward(), 0, None).result(10)
    with pytest.raises(TaskError):
        farm.check()
