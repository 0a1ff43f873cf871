"""Slots: memory that another process of this node can map, so that a tensor need not be sent.

A slot is a memfd: it has no name in any file system, and the system frees it when the last process
that holds it has ended. Another process of the same user opens it through ``/proc/PID/fd``. Slots
are used again, since the first write to new memory takes several times as long as a later one.
"""

from __future__ import annotations

import functools
import itertools
import math
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

SMALL = 64 * 1024  # bytes; a smaller tensor travels in the message itself

_numbers = itertools.count()


@dataclass(frozen=True)
class SlotReference:
    """Travels instead of a tensor: the slot at whose beginning the tensor is.

    ``fd`` is the descriptor of the slot in the process ``pid``, which owns it; ``inode`` shows that
    it is still the same slot; ``number`` is unique in its owner; ``capacity`` is in bytes. Two
    references to one slot are equal.
    """

    pid: int
    fd: int
    inode: int
    number: int
    capacity: int
    dtype: torch.dtype = field(compare=False)
    shape: tuple[int, ...] = field(compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Yield a descriptor of the slot.

        Raises `OSError` if it no longer exists, or this process may not open it.
        """
        descriptor = os.open(f"/proc/{self.pid}/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_ino != self.inode:
                raise FileNotFoundError(f"slot {self.number} of process {self.pid} is gone")
            yield descriptor
        finally:
            os.close(descriptor)


class Slot:
    """Memory of this process that others can map.

    Raises `OSError` or `RuntimeError` if the system has no memfds, no descriptor or no memory left.
    """

    def __init__(self, nbytes: int) -> None:
        self.number = next(_numbers)
        self.nbytes = nbytes
        # Calls that may still read this memory; such a slot is not used again.
        self.readers: set[int] = set()
        self._fd = os.memfd_create("distinf")
        self._end = weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, nbytes)
        self._inode = os.fstat(self._fd).st_ino
        self.memory = _map(self._fd, nbytes)
        _pin(self.memory)

    def reference(self, tensor: torch.Tensor) -> SlotReference:
        """Return what travels instead of a tensor at the beginning of this slot."""
        owner = os.getpid(), self._fd, self._inode
        return SlotReference(*owner, self.number, self.nbytes, tensor.dtype, tuple(tensor.shape))

    def close(self) -> None:
        """Free the memory once no process has it mapped, as deleting the slot does."""
        self._end()
        del self.memory


class Slots:
    """The slots of this process, of which at most ``spare`` are kept unused."""

    def __init__(self, spare: int) -> None:
        self._spare = spare
        self._free: list[Slot] = []
        # Filled by finalizers, which can run inside any other function: they take no lock.
        self._back: deque[Slot] = deque()
        self._lock = threading.Lock()
        self._count = 0

    def take(self, nbytes: int) -> Slot:
        """Return a slot of at least ``nbytes`` bytes; raises as `Slot`."""
        with self._lock:
            self._collect()
            fitting = [slot for slot in self._free if nbytes <= slot.nbytes <= 2 * nbytes]
            if fitting:
                slot = min(reversed(fitting), key=lambda slot: slot.nbytes)
                self._free.remove(slot)
                return slot
            if self._free and self._count >= 2 * self._spare:
                self._close(self._free.pop(0))
            slot = Slot(nbytes)
            self._count += 1
            return slot

    def give_back(self, slot: Slot) -> None:
        """Take a slot back; it is used again unless a call may still read it."""
        self._back.append(slot)

    def warm(self, nbytes: int) -> None:
        """Create as many slots of a size as are kept unused, and touch their memory."""
        while True:
            with self._lock:
                if self._count >= self._spare:
                    return
                slot = Slot(nbytes)
                self._count += 1
            slot.memory.zero_()
            self.give_back(slot)

    def _collect(self) -> None:
        while self._back:
            slot = self._back.popleft()
            if slot.readers:
                self._close(slot)
            else:
                self._free.append(slot)
        while len(self._free) > self._spare:
            self._close(self._free.pop(0))

    def _close(self, slot: Slot) -> None:
        slot.close()
        self._count -= 1


class Recycled:
    """Memory of this process for tensors, which is used again once no tensor refers to it.

    To write to new memory takes longer than to fill it. At most ``spare`` pieces are kept unused.
    """

    def __init__(self, spare: int) -> None:
        self._slots = Slots(spare)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor whose values are undefined."""
        nbytes = math.prod(shape) * dtype.itemsize
        try:
            slot = self._slots.take(nbytes) if nbytes >= SMALL else None
        except (AttributeError, OSError, RuntimeError):  # not Linux, or no descriptor left
            slot = None
        if slot is None:
            return torch.empty(tuple(shape), dtype=dtype)
        return view(slot.memory, dtype, shape, functools.partial(self._slots.give_back, slot))


def mapper(limit: int, pin: bool = False) -> Callable[[SlotReference], torch.Tensor]:
    """Return a function that maps a slot of another process and returns its memory, uint8.

    The ``limit`` slots that were used last stay mapped. With ``pin`` a GPU can read them without a
    copy in between. The function raises as `SlotReference.opened`.
    """

    @functools.lru_cache(limit)
    def map_slot(reference: SlotReference) -> torch.Tensor:
        with reference.opened() as descriptor:
            memory = _map(descriptor, reference.capacity)
        if pin:
            _pin(memory)
        return memory

    return map_slot


class PrivateView:
    """A tensor in a slot of another process, whose own tensor does not change with it.

    Pages that are written to are copied. Delete all references to `tensor` before :meth:`close`.
    The constructor raises as `SlotReference.opened`.
    """

    def __init__(self, reference: SlotReference) -> None:
        with reference.opened() as descriptor:
            self._map = mmap.mmap(descriptor, reference.nbytes, access=mmap.ACCESS_COPY)
        memory = torch.from_numpy(np.frombuffer(self._map, dtype=np.uint8))
        self.tensor = memory.view(reference.dtype).reshape(reference.shape)
        self.number = reference.number

    def close(self) -> bool:
        """Unmap it; False if the tensor is still referenced, which then stays mapped."""
        del self.tensor
        try:
            self._map.close()
        except BufferError:
            return False
        return True


def view(
    memory: torch.Tensor, dtype: torch.dtype, shape: Sequence[int], done: Callable[[], object]
) -> torch.Tensor:
    """Return a tensor at the beginning of a slot's memory, which is uint8.

    ``done`` is called, from any thread at any time, once no tensor refers to that memory.
    """
    array = memory.numpy()[: math.prod(shape) * dtype.itemsize]
    weakref.finalize(array, done).atexit = False
    # A storage of its own, of the tensor's size: a message holds the whole storage of a view.
    return torch.from_numpy(array).view(dtype).reshape(tuple(shape))


def _map(descriptor: int, nbytes: int) -> torch.Tensor:
    path = f"/proc/self/fd/{descriptor}"
    return torch.from_file(path, shared=True, size=nbytes, dtype=torch.uint8)


def _pin(memory: torch.Tensor) -> None:
    """Let a GPU read and write it without a copy in between; do nothing without a GPU."""
    cuda: Any = torch.cuda
    if cuda.is_available() and cuda.is_initialized():
        address = memory.data_ptr()
        runtime = cuda.cudart()
        if int(runtime.cudaHostRegister(address, memory.numel(), 0)) == 0:
            weakref.finalize(memory, runtime.cudaHostUnregister, address).atexit = False
