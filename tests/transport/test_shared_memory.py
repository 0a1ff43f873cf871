"""Tensors in shared memory: both ends in one process, which maps its own slots."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distinf.errors import WorkerLost
from distinf.transport import Call, Reply, Worker
from distinf.transport.shared_memory import DriverMemory, WorkerMemory
from distinf.transport.slots import SMALL, SlotReference

LARGE = SMALL // 4  # float32 values that do not go into a message
CPU = torch.device("cpu")


class Model:
    def __init__(self):
        self.kept = []

    def forward(self, x, what="plus"):
        if what == "overwrite":
            return x.zero_().sum().item()
        if what == "keep":
            self.kept.append(x)
        if what == "fail":
            raise KeyError(what)
        same = what in ("alias", "keep")
        return x if same else x + 1

    def recall(self):
        return [x.unique().tolist() for x in self.kept]

    def pair(self, x):
        return {"cut": x[: LARGE // 2 : 2], "brief": x.to(torch.bfloat16), "few": x[:3]}


class Ends:
    """A driver and a worker, and what travels between them."""

    def __init__(self):
        self.worker = WorkerMemory(Worker(1, CPU))
        self.driver = DriverMemory(workers=1)
        self.driver.try_rank(1, self.worker.probe)
        self.call("__build__", Model)

    def send(self, method, *args):
        message, unpack = self.driver.pack(1, Call(0, method, "", args))
        return message, lambda: unpack(self.worker.run(message))

    def call(self, method, *args):
        reply = self.send(method, *args)[1]()
        assert reply.failure is None, reply.failure
        return reply.value

    def state(self, value):
        return self.driver.take((LARGE,), torch.float32).fill_(value)


@pytest.fixture
def ends():
    return Ends()


def memfds():
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except OSError:  # that of the listing itself
            continue
    return [name for name in found if "distinf" in name]


def test_a_large_tensor_does_not_travel(ends):
    message, finish = ends.send("forward", ends.state(1.0))
    assert isinstance(message.call.args[0], SlotReference)
    assert torch.equal(finish().value, torch.full((LARGE,), 2.0))


def test_a_small_tensor_travels_in_the_message(ends):
    assert ends.driver.take((LARGE - 1,), torch.float32) is None
    x = torch.ones(LARGE - 1)
    message, finish = ends.send("forward", x)
    assert message.call.args[0] is x
    assert torch.equal(finish().value, x + 1)


def test_results_of_any_layout_and_type_are_the_same(ends):
    x = ends.state(0.0).copy_(torch.arange(LARGE))
    y = ends.call("pair", x)
    assert torch.equal(y["cut"], x[: LARGE // 2 : 2])
    assert torch.equal(y["brief"], x.to(torch.bfloat16))
    assert torch.equal(y["few"], x[:3])
    for tensor in y.values():
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_model_that_writes_to_its_input_changes_its_own_copy_alone(ends):
    x = ends.state(3.0)
    assert ends.call("forward", x, "overwrite") == 0.0
    assert x.unique().tolist() == [3.0]
    del x
    assert ends.call("forward", ends.state(4.0)).unique().tolist() == [5.0]


def test_a_result_that_is_the_input_stays_as_it_was(ends):
    results = [ends.call("forward", ends.state(i), "alias") for i in range(12)]
    assert [y.unique().tolist() for y in results] == [[float(i)] for i in range(12)]


def test_an_input_that_the_model_kept_stays_as_it_was(ends):
    for i in range(5):
        ends.call("forward", ends.state(i), "keep")
    for _ in range(20):
        ends.call("forward", ends.state(-1.0))
    assert ends.call("recall") == [[float(i)] for i in range(5)]


def test_slots_are_used_again(ends):
    before = len(memfds())
    numbers = set()
    for i in range(30):
        message, finish = ends.send("forward", ends.state(i))
        numbers.add(message.call.args[0].number)
        assert finish().value.unique().tolist() == [i + 1.0]
        del finish
    assert len(numbers) == 1
    assert len(memfds()) <= before + 3


def test_results_that_are_kept_take_no_more_than_a_few_slots(ends):
    before = len(memfds())
    results = [ends.call("forward", ends.state(i)) for i in range(50)]
    assert len(memfds()) <= before + 8
    assert [y.unique().tolist() for y in results] == [[i + 1.0] for i in range(50)]


def test_the_slot_of_a_call_that_did_not_come_back_is_given_up(ends):
    message, finish = ends.send("forward", ends.state(1.0))
    lost = message.call.args[0]
    del message, finish
    later, _ = ends.send("forward", ends.state(2.0))
    assert later.call.args[0].number != lost.number
    with pytest.raises(OSError, match=r"."), lost.opened():
        pass


def test_a_slot_is_not_closed_before_the_reply_of_its_call(ends):
    """As a copy of a GPU's state, to which only the transport refers."""
    _, finish = ends.send("forward", ends.state(1.0))
    for value in range(5):
        ends.state(value)
    assert finish().value.unique().tolist() == [2.0]


def test_a_failed_call_takes_no_slot(ends):
    before = len(memfds())
    for _ in range(20):
        assert ends.send("forward", ends.state(1.0), "fail")[1]().failure is not None
    assert len(memfds()) <= before + 3


def test_a_result_of_a_process_that_has_ended_is_lost_with_it(ends):
    message, _ = ends.send("forward", ends.state(1.0))
    answer = ends.worker.run(message)
    ended = subprocess.Popen(["true"])
    ended.wait()
    reference = replace(Reply(*answer.fields).value, pid=ended.pid, inode=0)
    with pytest.raises(WorkerLost, match="rank 1 was lost: its process ended"):
        ends.driver._view(1, reference)


def test_the_next_inputs_memory_is_made_ahead(ends):
    ends.driver.expect(4 * LARGE)
    ends.driver.expect(4 * LARGE)
    for _ in range(10):
        ends.call("forward", ends.state(1.0))
    assert len(memfds()) <= 10


def test_nothing_is_left_when_both_ends_are_gone():
    before = memfds()
    ends = Ends()
    y = ends.call("forward", ends.state(1.0))
    assert len(memfds()) > len(before)
    assert all(name.endswith("(deleted)") for name in memfds())  # no name in any file system
    del ends
    assert memfds() == before
    assert y.unique().tolist() == [2.0]  # the mapping lives as long as the result


@pytest.mark.parametrize("why", ["other pid namespace", "no answer", "no memfd", "wrong bytes"])
def test_without_shared_memory_tensors_travel_in_messages(why, monkeypatch):
    worker, driver = WorkerMemory(Worker(1, CPU)), DriverMemory(workers=1)

    def ask(offer):
        if why == "no answer":
            raise RuntimeError("timed out")
        if why == "other pid namespace":
            return worker.probe(replace(offer, inode=offer.inode + 1))
        answer = worker.probe(offer)
        if why == "wrong bytes":
            return worker.probe(driver_slot_of_another(driver))
        return answer

    if why == "no memfd":
        monkeypatch.delattr(os, "memfd_create")
    driver.try_rank(1, ask)
    assert driver.ranks == set()
    x = driver.take((LARGE,), torch.float32)  # memory that is used again is worth it for itself
    assert (x is None) == (why == "no memfd")
    x = torch.ones(LARGE) if x is None else x
    assert driver.pack(1, Call(0, "forward", "", (x,)))[0].call.args[0] is x


def driver_slot_of_another(driver):
    """An offer that holds other bytes than the driver's own."""
    slot = driver._slots.take(16)
    return slot.reference(slot.memory[:16].fill_(7))
