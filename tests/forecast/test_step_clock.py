"""Steps are recorded when they have been computed, and nobody waits for them."""

import threading
import time

import torch

from distinf.forecast.prognostic import StepClock
from distinf.report import Events
from tests.waiting import until


class Computed:
    """An event that happens when the test says so."""

    def __init__(self):
        self.happened = threading.Event()

    def synchronize(self):
        assert self.happened.wait(30)


def test_a_gpu_is_not_waited_for():
    events, computed = Events(), [Computed(), Computed()]
    clock = StepClock(events.record, lambda x: computed[int(x)])
    asked = time.time()
    for step in (0, 1):
        clock.stepped(f"step {step}", asked, torch.tensor(step))
    assert list(events) == []
    returned = time.time()
    for event in computed:
        event.happened.set()
    until(lambda: len(list(events)) == 2)
    first, second = events
    assert [first.task, second.task] == ["step 0", "step 1"]
    assert asked == first.start <= returned <= first.end
    assert first.end == second.start  # it was asked for before the GPU had done the first


def test_on_the_cpu_a_step_has_been_computed_when_it_returns():
    events = Events()
    clock = StepClock(events.record)
    clock.stepped("step 0", time.time() - 1, torch.zeros(1))
    (event,) = events
    assert 1 <= event.end - event.start < 30
