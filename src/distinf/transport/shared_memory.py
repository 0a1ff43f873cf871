"""Calls whose tensors lie in shared memory: the driver's end and a worker's.

::

    driver: empty() -> selection writes -> slot ----> private view -> model :worker
    driver: result  <- view until forgotten <- slot <---- copied once <- result :worker

The driver's slot is free again once nobody has its tensor: the farm drops it when its task is
done. If a call did not come back (its worker was lost, and may wake up again), or the model kept
its input, the slot is given up instead of used again. A worker's slot is free again once the
driver says, with a later call, that nobody there has the result.
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
from distinf.tensors import map_leaves, map_tensors
from distinf.transport.contract import Call, Reply
from distinf.transport.slots import SMALL, Mappings, Placed, PrivateView, Slot, Slots, view
from distinf.transport.worker import Worker

__all__ = ["Answer", "DriverMemory", "Message", "WorkerMemory"]

# Results of one worker that the driver's user may have in the worker's slots; more are copied.
_LENT = 4
_IN_FLIGHT = 2
_PROBE = 16  # bytes


class Message(NamedTuple):
    """A call as it travels: with `Placed` for tensors in slots.

    Parameters
    ----------
    call : Call
        The call.
    freed : tuple[int, ...]
        The receiver's slots that nobody has any longer.
    placed : bool
        Whether any tensor lies in a slot.
    """

    call: Call
    freed: tuple[int, ...] = ()
    placed: bool = False

    def wire(self) -> tuple[Any, ...]:
        """Return it as plain values: half the time of a small call is pickling."""
        call = self.call
        fields = call.model, call.method, call.task, call.args, call.kwargs
        return fields, self.freed, self.placed

    @classmethod
    def of(cls, fields: tuple[Any, ...], freed: tuple[int, ...], placed: bool) -> Message:
        """Make it from what :meth:`wire` returned."""
        return cls(Call(*fields), freed, placed)


class Answer(NamedTuple):
    """A reply as it travels: with `Placed` for tensors in slots.

    Parameters
    ----------
    reply : Reply
        The reply.
    kept : tuple[int, ...]
        Slots of the call that the model still looks at.
    placed : bool
        Whether any tensor lies in a slot.
    """

    reply: Reply
    kept: tuple[int, ...] = ()
    placed: bool = False

    def wire(self) -> tuple[Any, ...]:
        """Return it as plain values."""
        reply = self.reply
        envelope = reply.value, reply.failure, reply.rank, reply.host, reply.started, reply.ended
        return (*envelope, reply.nonfinite, reply.unusable), self.kept, self.placed

    @classmethod
    def of(cls, fields: tuple[Any, ...], kept: tuple[int, ...], placed: bool) -> Answer:
        """Make it from what :meth:`wire` returned."""
        return cls(Reply(*fields), kept, placed)


class DriverMemory:
    """The driver's end.

    Parameters
    ----------
    workers : int
        How many there are.
    """

    def __init__(self, workers: int) -> None:
        self.ranks: set[int] = set()
        self._slots = Slots(_IN_FLIGHT * workers + 2)
        self._mappings = Mappings((_LENT + _IN_FLIGHT) * workers)
        self._mine: dict[int, Slot] = {}
        self._calls = itertools.count()
        self._lent: defaultdict[int, set[int]] = defaultdict(set)
        self._freed: defaultdict[int, deque[int]] = defaultdict(deque)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor | None:
        """Return a slot's memory for a tensor that is large enough, if somebody shares it."""
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        if not self.ranks or nbytes < SMALL:
            return None
        try:
            slot = self._slots.take(nbytes)
        except (OSError, RuntimeError):  # no descriptor left: it travels in the message
            return None
        address = slot.memory.data_ptr()
        self._mine[address] = slot
        return view(slot.memory, dtype, shape, partial(self._forget, address))

    def expect(self, nbytes: int) -> None:
        """Make slots of a size ready, in the background."""
        if self.ranks and nbytes >= SMALL:
            in_background(partial(self._slots.warm, nbytes), "distinf-slots")

    def pack(self, rank: int, call: Call) -> tuple[Message, Callable[[Answer], Reply]]:
        """Make a call ready to travel.

        Returns
        -------
        tuple[Message, Callable[[Answer], Reply]]
            What to send, and what makes a reply of its answer.
        """
        number = next(self._calls)
        used: dict[int, Slot] = {}

        def pack_tensor(tensor: torch.Tensor) -> torch.Tensor | Placed:
            slot = self._find(tensor) if rank in self.ranks else None
            if slot is None:
                return tensor
            slot.readers.add(number)
            used[slot.number] = slot
            return slot.place(tensor)

        if self._mine:
            args, kwargs = map_tensors((call.args, call.kwargs), pack_tensor)
            call = Call(call.model, call.method, call.task, args, kwargs)
        message = Message(call, self._drain(rank), bool(used))
        return message, partial(self._unpack, rank, number, used)

    def unsent(self, rank: int, message: Message) -> None:
        """Take note that a message could not be sent."""
        self._freed[rank].extend(message.freed)

    def try_rank(self, rank: int, ask: Callable[[Placed], Placed | None]) -> None:
        """Find out whether a worker and this process can map each other's slots.

        Parameters
        ----------
        rank : int
            The worker.
        ask : Callable[[Placed], Placed | None]
            Calls `WorkerMemory.probe` there.
        """
        try:
            slot = Slot(_PROBE)
            # Not torch's random numbers, which belong to the user.
            token = slot.memory.copy_(torch.tensor(list(os.urandom(_PROBE)), dtype=torch.uint8))
            answer = ask(slot.place(token))
            if answer is not None and torch.equal(self._mappings.get(answer)[:_PROBE], token):
                self.ranks.add(rank)
                self._freed[rank].append(answer.number)
        except (AttributeError, OSError, RuntimeError):
            return  # not Linux, another pid namespace or user, no answer

    def _find(self, tensor: torch.Tensor) -> Slot | None:
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            return None
        slot = self._mine.get(tensor.data_ptr())
        fits = slot is not None and tensor.is_contiguous() and tensor.nbytes <= slot.nbytes
        return slot if fits else None

    def _forget(self, address: int) -> None:
        self._slots.give_back(self._mine.pop(address))

    def _unpack(self, rank: int, number: int, used: dict[int, Slot], answer: Answer) -> Reply:
        for slot in used.values():
            if slot.number not in answer.kept:
                slot.readers.discard(number)
        if not answer.placed:
            return answer.reply

        def unpack(leaf: Any) -> Any:
            return self._view(rank, leaf) if isinstance(leaf, Placed) else leaf

        return replace(answer.reply, value=map_leaves(answer.reply.value, unpack))

    def _view(self, rank: int, placed: Placed) -> torch.Tensor:
        memory = self._mappings.get(placed)
        if len(self._lent[rank]) < _LENT:
            self._lent[rank].add(placed.number)
            # A result may be kept for longer than all else here.
            done = partial(_release, self._lent[rank], self._freed[rank], placed.number)
            return view(memory, placed.dtype, placed.shape, done)
        result = memory[: placed.nbytes].clone().view(placed.dtype).reshape(placed.shape)
        self._freed[rank].append(placed.number)
        return result

    def _drain(self, rank: int) -> tuple[int, ...]:
        freed = self._freed[rank]
        if not freed:
            return ()
        return tuple(freed.popleft() for _ in range(len(freed)))


class WorkerMemory:
    """A worker's end.

    Parameters
    ----------
    worker : Worker
        Runs the calls.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._slots = Slots(_LENT + _IN_FLIGHT)
        self._lent: dict[int, Slot] = {}
        self._shares = False
        # A GPU copies its input from the slot. On the CPU the model is given the slot itself.
        on_cpu = worker.device.type == "cpu"
        self._mappings = None if on_cpu else Mappings(64, pin=True)

    def probe(self, offer: Placed) -> Placed | None:
        """Answer the driver's question whether slots can be mapped: with the same bytes."""
        try:
            view = PrivateView(offer)
            slot = self._slots.take(_PROBE)
            slot.memory[:_PROBE].copy_(view.tensor)
            view.close()
        except (AttributeError, OSError, RuntimeError):
            return None
        self._shares = True
        self._lent[slot.number] = slot
        return slot.place(slot.memory)

    def run(self, message: Message) -> Answer:
        """Run a call whose tensors lie in the driver's slots, and put its result into own ones."""
        for number in message.freed:
            self._slots.give_back(self._lent.pop(number))
        views: list[PrivateView] = []
        call = message.call
        if message.placed:
            call = _map_call(call, partial(self._open, views))
        taken: dict[int, Slot] = {}
        reply = self._worker.run(call, partial(self._take, taken) if self._shares else None)
        del call
        if reply.failure is not None:
            for slot in taken.values():
                self._slots.give_back(slot)
        elif taken:
            reply = replace(reply, value=map_tensors(reply.value, partial(self._place, taken)))
        kept = tuple(view.number for view in views if not view.close())
        return Answer(reply, kept, reply.failure is None and bool(taken))

    def _open(self, views: list[PrivateView], leaf: Any) -> Any:
        if not isinstance(leaf, Placed):
            return leaf
        if self._mappings is not None:
            memory = self._mappings.get(leaf)
            return memory[: leaf.nbytes].view(leaf.dtype).reshape(leaf.shape)
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

    def _place(self, taken: dict[int, Slot], tensor: torch.Tensor) -> torch.Tensor | Placed:
        slot = taken.get(tensor.data_ptr())
        if slot is None:
            return tensor
        self._lent[slot.number] = slot
        return slot.place(tensor)


def _release(lent: set[int], freed: deque[int], number: int) -> None:
    freed.append(number)
    lent.discard(number)


def _map_call(call: Call, change: Callable[[Any], Any]) -> Call:
    """Change what is in a call's arguments."""
    args, kwargs = map_leaves((call.args, call.kwargs), change)
    return Call(call.model, call.method, call.task, args, kwargs)
