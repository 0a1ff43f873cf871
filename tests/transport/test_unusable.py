"""A worker whose GPU fails every further call is a lost worker; on rank 0 the run ends."""

from concurrent.futures import Future

import pytest

from distinf.errors import SessionError, TaskError, TaskLost
from distinf.farm.driver import DriverWorks
from distinf.farm.farm import Farm
from distinf.transport import Call, Failure, Reply

POISONED = Failure("Model.forward", "AcceleratorError", "CUDA error: device-side assert", "trace")


class Ranks:
    """A transport whose ranks answer at once, the poisoned ones as a GPU does after an assert."""

    carrier, reason = "host", ""

    def __init__(self, workers, poisoned):
        self.workers, self.poisoned = tuple(workers), set(poisoned)
        self.asked, self.lost = [], set()

    def send(self, rank, call, timeout):
        self.asked.append(rank)
        bad = rank in self.poisoned
        answer = Future()
        answer.set_result(
            Reply(None if bad else rank, POISONED if bad else None, rank, "n1", 0, 1, 0, bad)
        )
        return answer

    def lose(self, rank):
        self.lost.add(rank)


def forward(number=0):
    return Call(0, "__forward__", f"task {number}")


def test_its_task_goes_elsewhere(caplog):
    farm = Farm(Ranks([1, 2], poisoned=[1]))
    assert [farm.submit(forward(i), 0, None).result(10) for i in range(3)] == [2, 2, 2]
    assert farm.workers == (2,)
    assert farm.transport.lost == {1}  # nobody waits for it at the end
    assert "its GPU can no longer be used: AcceleratorError: CUDA error" in caplog.text


def test_a_task_that_poisons_every_gpu_is_given_up():
    farm = Farm(Ranks([1, 2, 3, 4], poisoned=[1, 2, 3]), max_attempts=3)
    with pytest.raises(TaskLost, match=r"attempt 3.*device-side assert"):
        farm.submit(forward(), 0, None).result(10)
    assert farm.workers == (4,)


def test_without_a_worker_left_the_run_says_why():
    farm = Farm(Ranks([1], poisoned=[1]))
    with pytest.raises(SessionError, match=r"no worker is left.*device-side assert"):
        farm.submit(forward(), 0, None).result(10)


def test_it_is_lost_to_other_calls_too():
    farm = Farm(Ranks([1, 2], poisoned=[1]))
    with pytest.raises(TaskError, match="device-side assert"):
        farm.call(1, Call(0, "__build__", args=(int,))).result(10)
    assert farm.workers == (2,)


def test_on_the_drivers_own_gpu_it_ends_the_run_even_if_errors_are_skipped():
    own = Ranks([0], poisoned=[0])
    driver = DriverWorks(own, "fallback")
    driver.note_build(Call(0, "__build__"))
    driver._built.add(0)
    farm = Farm(Ranks([1], poisoned=[1]), skip_errors=True, driver=driver)
    with pytest.raises(TaskError, match=r"on rank 0.*device-side assert"):
        farm.submit(forward(), 0, None).result(10)
    with pytest.raises(TaskError):
        farm.check()
