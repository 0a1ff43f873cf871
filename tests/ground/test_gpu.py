"""Order on a GPU: every byte is there before it is used, in whatever order its streams work."""

import threading
from functools import partial

import pytest
import torch

from distinf.background import in_order
from distinf.gpu import Copies, Lane, on_gpu, record_event, to_host
from distinf.transport import Call, Worker
from tests.simulated_gpu import SimulatedGpu

SEEDS = range(20)


def rollout(gpu, nsteps):
    """A prognostic that reuses its state's memory at once, and a selection after each step."""
    state = gpu.tensor(0.0, 0.0)
    for step in range(1, nsteps + 1):
        gpu.launch(lambda step=step: state.fill_(step))
        selected = gpu.tensor(-1.0, -1.0)
        gpu.launch(lambda selected=selected: selected.copy_(state))
        yield step, selected
        gpu.launch(lambda: state.fill_(float("nan")))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_left_is_the_state_of_its_step(seed):
    gpu = SimulatedGpu(seed)
    copies = Copies(gpu)
    leaving = [(step, copies.to_host({"x": [x]})) for step, x in rollout(gpu, 8)]
    for step, copy in leaving:
        assert copy.wait()["x"][0].tolist() == [step, step]


@pytest.mark.parametrize("seed", SEEDS)
def test_another_thread_can_send_what_this_one_selected(seed):
    """As a lost worker's task is sent once more: its own stream knows nothing of the selection."""
    gpu = SimulatedGpu(seed)
    copies = Copies(gpu)
    ((step, selected),) = rollout(gpu, 1)
    ready = gpu.event()
    ready.record(gpu.current_stream())
    found = []

    def elsewhere():
        with gpu.using(gpu.stream()):
            found.append(copies.to_host(selected, ready).wait())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(30)
    assert found[0].tolist() == [step, step]


def test_the_thread_that_sends_waits_for_nothing():
    gpu = SimulatedGpu()
    copies = Copies(gpu)
    for _, selected in rollout(gpu, 3):
        copies.to_host(selected)
    assert len(gpu.default.queue) > 0  # nothing of it has run


def test_memory_is_kept_until_it_has_left():
    gpu = SimulatedGpu()
    copies = Copies(gpu)
    _, selected = next(rollout(gpu, 1))
    copies.to_host(selected)
    assert [(pointer, stream is gpu.default) for pointer, stream in gpu.lent] == [
        (selected.data_ptr(), False)
    ]


def test_copies_are_waited_for_in_order_and_errors_stop_none():
    gpu = SimulatedGpu(3)
    copies, order = Copies(gpu), []

    def receive(copy):
        value = copy.wait()
        order.append(value[0].item())
        if value[0] == 2:
            raise ValueError("not this one")
        return value.tolist()

    futures = [in_order(partial(receive, copies.to_host(x))) for _, x in rollout(gpu, 4)]
    assert isinstance(futures.pop(1).exception(30), ValueError)
    assert [future.result(30) for future in futures] == [[1, 1], [3, 3], [4, 4]]
    assert order == [1, 2, 3, 4]


def test_a_cancelled_copy_does_not_stop_the_next_one():
    begun, may_end = threading.Event(), threading.Event()
    first = in_order(lambda: begun.set() or may_end.wait(30))
    assert begun.wait(30)
    second, third = in_order(lambda: 2), in_order(lambda: 3)
    assert second.cancel()
    may_end.set()
    assert (first.result(30), third.result(30)) == (True, 3)


def test_an_error_of_the_gpu_reaches_who_waits():
    gpu = SimulatedGpu()
    gpu.broken = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert in_order(Copies(gpu).to_host(gpu.tensor(1.0)).wait).exception(30) is gpu.broken


@pytest.mark.parametrize("seed", SEEDS)
def test_results_are_complete_when_they_are_given_out(seed):
    gpu = SimulatedGpu(seed)
    copies = Copies(gpu)
    home = gpu.default_stream()
    travelling = gpu.stream()
    received = gpu.tensor(float("nan"))
    with gpu.using(travelling):
        gpu.launch(lambda: received.fill_(7))
        there, from_host = copies.to_device((received, torch.ones(1)), home)
    assert (there.tolist(), from_host.tolist()) == ([7], [1])
    assert {pointer for pointer, stream in gpu.lent if stream is home} == {
        there.data_ptr(),
        from_host.data_ptr(),
    }


class Doubled:
    """A model whose work is enqueued, as on a GPU."""

    def __init__(self, gpu, error=None):
        self.gpu, self.error = gpu, error

    def forward(self, x):
        if self.error is not None:
            raise self.error
        y = self.gpu.tensor(-1.0)
        self.gpu.launch(lambda: y.copy_(2 * x))
        return y


def worker_on(gpu, **more):
    worker = Worker(1, torch.device("cpu"), lane=Lane(gpu, **more))
    return worker


def call(method, *args, ready=None):
    return Call(0, method, "a task", args, {}, ready)


@pytest.mark.parametrize("stay", [False, True])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_worker_computes_behind_what_arrives(seed, beside, stay):
    gpu = SimulatedGpu(seed)
    worker = worker_on(gpu, beside=beside)
    worker.results_stay = stay
    worker.run(call("__build__", Doubled, gpu))
    for value in (1.0, 2.0, 3.0):
        # Each call arrives on a stream of its own, as those of TensorPipe do.
        with gpu.using(gpu.stream()):
            x = gpu.tensor(float("nan"))
            gpu.launch(lambda x=x, value=value: x.fill_(value))
            reply = worker.run(call("__forward__", x))
        assert reply.value.tolist() == [2 * value]
        assert gpu.owns(reply.value) == stay


@pytest.mark.parametrize("seed", SEEDS)
def test_the_driver_computes_behind_the_selection(seed):
    gpu = SimulatedGpu(seed)
    worker = worker_on(gpu, beside=True)
    worker.run(call("__build__", Doubled, gpu))
    x, ready = gpu.tensor(float("nan")), gpu.event()
    gpu.launch(lambda: x.fill_(4))
    ready.record(gpu.current_stream())
    gpu.launch(lambda: gpu.tensor(0.0))
    with gpu.using(gpu.stream()):  # another thread's
        assert worker.run(call("__forward__", x, ready=ready)).value.tolist() == [8]


class Poisoned(RuntimeError):
    """As torch.AcceleratorError: what has failed once fails in every further call."""


def test_an_error_that_poisons_the_gpu_is_told_once():
    gpu = SimulatedGpu()
    worker = worker_on(gpu)
    told = []
    worker.when_unusable = told.append
    error = Poisoned("CUDA error: device-side assert triggered")
    worker.run(call("__build__", Doubled, gpu, error))
    gpu.broken = error
    first, second = (worker.run(call("__forward__", torch.ones(1))) for _ in range(2))
    assert first.unusable
    assert second.unusable
    assert told == ["Poisoned: CUDA error: device-side assert triggered"]


@pytest.mark.parametrize(
    "error", [ValueError("wrong shape"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_other_errors_leave_the_worker_able(error):
    gpu = SimulatedGpu()
    worker = worker_on(gpu)
    told = []
    worker.when_unusable = told.append
    worker.run(call("__build__", Doubled, gpu, error))
    reply = worker.run(call("__forward__", torch.ones(1)))
    assert reply.failure.kind == type(error).__name__
    assert not reply.unusable
    assert told == []


def test_tensors_of_the_host_need_no_event():
    assert on_gpu(({"a": torch.ones(1)},)) is None
    assert record_event(torch.ones(1)) is None
    x = torch.ones(1)
    assert to_host({"x": x}).result(0)["x"] is x
