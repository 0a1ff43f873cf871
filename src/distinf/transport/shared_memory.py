"""Calls whose tensors are in shared memory: the driver's end and a worker's.

::

    driver: empty() -> selection writes -> slot ----> private view -> model :worker
    driver: result  <- view until deleted <- slot <---- copied once <- result :worker

A slot of the driver is free again once no tensor refers to it: the farm deletes a task's tensors
when the task is done. If a call was not answered (its worker was lost, and may continue later), or
the model kept its input, the slot is closed instead. A worker's slot is free again once the driver
says, with a later call, that it has deleted the result.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from distinf.background import in_background
from distinf.errors import WorkerLost
from distinf.tensors import map_leaves, map_tensors
from distinf.transport.contract import Call, Reply
from distinf.transport.slots import SMALL, PrivateView, Slot, SlotReference, Slots, mapper, view
from distinf.transport.worker import Worker

# Results of one worker that the driver may keep in the worker's slots; further ones are copied.
_LENT = 4
_IN_FLIGHT = 2
_PROBE = 16  # bytes


class Message(NamedTuple):
    """A call as it travels: plain values, since half the time of a small call is pickling.

    ``fields`` are those of the call, with a `SlotReference` for each tensor in a slot; ``freed``
    are the receiver's slots whose results the driver has deleted.
    """

    fields: tuple[Any, ...]
    freed: tuple[int, ...]
    in_slots: bool

    @property
    def call(self) -> Call:
        """The call."""
        return Call(*self.fields)


class Answer(NamedTuple):
    """A reply as it travels; as `Message`. The model still reads the call's slots in ``kept``."""

    fields: tuple[Any, ...]
    kept: tuple[int, ...]
    in_slots: bool


class DriverMemory:
    """The driver's end; `ranks` are the workers that share memory with it."""

    def __init__(self, workers: int) -> None:
        self.ranks: set[int] = set()
        self._slots = Slots(_IN_FLIGHT * workers + 2)
        self._map = mapper((_LENT + _IN_FLIGHT) * workers)
        self._used: dict[int, Slot] = {}  # by the address of their memory
        self._calls = itertools.count()
        self._lent: defaultdict[int, set[int]] = defaultdict(set)
        self._freed: defaultdict[int, deque[int]] = defaultdict(deque)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor | None:
        """Return a slot's memory for a tensor that is large enough.

        Also for workers that share no memory: a slot is used again, and new memory is slow.
        """
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        if nbytes < SMALL:
            return None
        try:
            slot = self._slots.take(nbytes)
        except (AttributeError, OSError, RuntimeError):  # not Linux, or no descriptor left
            return None
        address = slot.memory.data_ptr()
        self._used[address] = slot
        return view(
            slot.memory, dtype, shape, lambda: self._slots.give_back(self._used.pop(address))
        )

    def expect(self, nbytes: int) -> None:
        """Create slots of a size, in the background."""
        if self.ranks and nbytes >= SMALL:
            in_background(partial(self._slots.warm, nbytes), "distinf-slots")

    def pack(self, rank: int, call: Call) -> tuple[Message, Callable[[Answer], Reply]]:
        """Return the message of a call, and the function that turns its answer into a reply.

        The function keeps the slots of the call's tensors, which the worker may not have opened.
        """
        number = next(self._calls)
        used: list[tuple[Slot, torch.Tensor]] = []

        def pack_tensor(tensor: torch.Tensor) -> torch.Tensor | SlotReference:
            slot = self._find(tensor) if rank in self.ranks else None
            if slot is None:
                return tensor
            slot.readers.add(number)
            used.append((slot, tensor))
            return slot.reference(tensor)

        args, kwargs = call.args, call.kwargs
        if self._used:
            args, kwargs = map_tensors((args, kwargs), pack_tensor)
        fields = call.model, call.method, call.task, args, kwargs
        freed = self._freed[rank]
        numbers = tuple(freed.popleft() for _ in range(len(freed)))
        message = Message(fields, numbers, bool(used))
        return message, partial(self._unpack, rank, number, used)

    def unsent(self, rank: int, message: Message) -> None:
        """Send the message's freed slots with the next one, since it could not be sent."""
        self._freed[rank].extend(message.freed)

    def try_rank(self, rank: int, ask: Callable[[SlotReference], SlotReference | None]) -> None:
        """Find out whether a worker and this process can map each other's slots.

        ``ask`` calls `WorkerMemory.probe` there.
        """
        try:
            slot = Slot(_PROBE)
            # Not torch's random numbers: the user may have set their seed.
            token = slot.memory.copy_(torch.tensor(list(os.urandom(_PROBE)), dtype=torch.uint8))
            answer = ask(slot.reference(token))
            if answer is not None and torch.equal(self._map(answer)[:_PROBE], token):
                self.ranks.add(rank)
                self._freed[rank].append(answer.number)
        except (AttributeError, OSError, RuntimeError):
            return  # not Linux, another pid namespace or user, no answer

    def forget(self, rank: int) -> None:
        """Share no memory with a worker, whose process has ended or will.

        Results of that process that are still in use keep its slots, and report it to nobody.
        """
        self.ranks.discard(rank)
        self._lent.pop(rank, None)
        self._freed.pop(rank, None)

    def _find(self, tensor: torch.Tensor) -> Slot | None:
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            return None
        slot = self._used.get(tensor.data_ptr())
        fits = slot is not None and tensor.is_contiguous() and tensor.nbytes <= slot.nbytes
        return slot if fits else None

    def _unpack(
        self, rank: int, number: int, used: list[tuple[Slot, torch.Tensor]], answer: Answer
    ) -> Reply:
        for slot, _ in used:
            if slot.number not in answer.kept:
                slot.readers.discard(number)

        def unpack(leaf: Any) -> Any:
            return self._view(rank, leaf) if isinstance(leaf, SlotReference) else leaf

        reply = Reply(*answer.fields)
        return replace(reply, value=map_leaves(reply.value, unpack)) if answer.in_slots else reply

    def _view(self, rank: int, reference: SlotReference) -> torch.Tensor:
        try:
            memory = self._map(reference)
        except (FileNotFoundError, ProcessLookupError, PermissionError) as error:  # of /proc
            raise WorkerLost(rank, "its process ended before its result was read") from error
        lent, freed = self._lent[rank], self._freed[rank]
        number = reference.number

        def done() -> None:  # refers to no object of the session, which a result may outlive
            freed.append(number)
            lent.discard(number)

        if len(lent) < _LENT:
            lent.add(number)
            return view(memory, reference.dtype, reference.shape, done)
        result = _tensor_in(memory, reference).clone()
        done()
        return result


class WorkerMemory:
    """A worker's end."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._slots = Slots(_LENT + _IN_FLIGHT)
        self._lent: dict[int, Slot] = {}
        self._shares = False
        # A GPU copies its input from the slot. On the CPU the model is given the slot itself.
        on_cpu = worker.device.type == "cpu"
        self._map = None if on_cpu else mapper(64, pin=True)

    def probe(self, offer: SlotReference) -> SlotReference | None:
        """Copy the bytes of the driver's slot to an own one, if slots can be mapped."""
        try:
            view = PrivateView(offer)
            slot = self._slots.take(_PROBE)
            slot.memory[:_PROBE].copy_(view.tensor)
            view.close()
        except (AttributeError, OSError, RuntimeError):
            return None
        self._shares = True
        self._lent[slot.number] = slot
        return slot.reference(slot.memory)

    def run(self, message: Message) -> Answer:
        """Run a call whose tensors are in the driver's slots, and copy its result to own ones."""
        for number in message.freed:
            self._slots.give_back(self._lent.pop(number))
        views: list[PrivateView] = []
        call = message.call
        if message.in_slots:
            args, kwargs = map_leaves((call.args, call.kwargs), partial(self._open, views))
            call = replace(call, args=args, kwargs=kwargs)
            del args, kwargs
        taken: dict[int, Slot] = {}
        reply = self._worker.run(call, partial(self._take, taken) if self._shares else None)
        del call
        if reply.failure is not None:
            for slot in taken.values():
                self._slots.give_back(slot)
        elif taken:
            reply = replace(reply, value=map_tensors(reply.value, partial(self._refer, taken)))
        kept = tuple(view.number for view in views if not view.close())
        fields = tuple(vars(reply).values())
        return Answer(fields, kept, reply.failure is None and bool(taken))

    def _open(self, views: list[PrivateView], leaf: Any) -> Any:
        if not isinstance(leaf, SlotReference):
            return leaf
        if self._map is not None:
            return _tensor_in(self._map(leaf), leaf)
        views.append(PrivateView(leaf))
        return views[-1].tensor

    def _take(self, taken: dict[int, Slot], tensor: torch.Tensor) -> torch.Tensor | None:
        """Return a slot's memory for a tensor of a result."""
        plain = tensor.layout is torch.strided and not tensor.is_quantized
        if not plain or tensor.nbytes < SMALL:
            return None
        try:
            slot = self._slots.take(tensor.nbytes)
        except (OSError, RuntimeError):  # no descriptor left
            return None
        taken[slot.memory.data_ptr()] = slot
        return slot.memory[: tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)

    def _refer(self, taken: dict[int, Slot], tensor: torch.Tensor) -> torch.Tensor | SlotReference:
        slot = taken.get(tensor.data_ptr())
        if slot is None:
            return tensor
        self._lent[slot.number] = slot
        return slot.reference(tensor)


def _tensor_in(memory: torch.Tensor, reference: SlotReference) -> torch.Tensor:
    return memory[: reference.nbytes].view(reference.dtype).reshape(reference.shape)
