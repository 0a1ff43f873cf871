"""Memory that another process of this node can map, so that a tensor need not travel.

A slot is a memfd: it has no name in any file system and ends with the last process that holds
it, however that ends. The other side opens it through ``/proc/PID/fd``, as the owner's user may.
Slots are kept and used again, since the first touch of fresh memory costs several times the copy.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["SMALL", "Mappings", "Placed", "PrivateView", "Slot", "Slots", "view"]

SMALL = 64 * 1024  # bytes; a smaller tensor travels in the message itself

_numbers = itertools.count()


@dataclass(frozen=True)
class Placed:
    """Where a tensor lies; travels in its stead.

    Parameters
    ----------
    pid, fd, inode : int
        The slot: its owner, and the owner's descriptor. The inode tells whether it is still it.
    number : int
        Of the slot, as its owner counts.
    capacity : int
        Bytes of the slot.
    dtype, shape : torch.dtype, tuple[int, ...]
        Of the tensor, which begins where the slot does.
    """

    pid: int
    fd: int
    inode: int
    number: int
    capacity: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def open(self) -> int:
        """Open the slot; the caller closes the descriptor.

        Raises
        ------
        OSError
            If it is no longer there, or not to be reached from this process.
        """
        descriptor = os.open(f"/proc/{self.pid}/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        if os.fstat(descriptor).st_ino != self.inode:
            os.close(descriptor)
            raise FileNotFoundError(f"slot {self.number} of process {self.pid} is gone")
        return descriptor


class Slot:
    """Memory of this process that others can map.

    Parameters
    ----------
    nbytes : int
        Its size.

    Raises
    ------
    OSError, RuntimeError
        If the system has no memfds, no descriptor or no memory left.
    """

    def __init__(self, nbytes: int) -> None:
        self.number = next(_numbers)
        self.nbytes = nbytes
        # Calls that may still look at what lies here; such a slot is not used again.
        self.readers: set[int] = set()
        self._fd = os.memfd_create("distinf")
        self._end = weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, nbytes)
        self._inode = os.fstat(self._fd).st_ino
        self.memory = _map(self._fd, nbytes)
        _pin(self.memory)

    def place(self, tensor: torch.Tensor) -> Placed:
        """Tell where a tensor lies that begins where this slot does."""
        return Placed(
            os.getpid(),
            self._fd,
            self._inode,
            self.number,
            self.nbytes,
            tensor.dtype,
            tuple(tensor.shape),
        )

    def close(self) -> None:
        """Let the memory go, once nobody has it mapped; as forgetting the slot does."""
        self._end()
        del self.memory


class Slots:
    """The slots of this process.

    Parameters
    ----------
    spare : int
        How many may lie unused.
    """

    def __init__(self, spare: int) -> None:
        self._spare = spare
        self._free: list[Slot] = []
        # Filled by finalizers, which can run in the middle of anything: no lock there.
        self._back: deque[Slot] = deque()
        self._lock = threading.Lock()
        self._made = 0

    def take(self, nbytes: int) -> Slot:
        """Return a slot with room for so many bytes; raises as `Slot`."""
        with self._lock:
            self._collect()
            fitting = [slot for slot in self._free if nbytes <= slot.nbytes <= 2 * nbytes]
            if fitting:
                slot = min(reversed(fitting), key=lambda slot: slot.nbytes)
                self._free.remove(slot)
                return slot
            if self._free and self._made >= 2 * self._spare:
                self._close(self._free.pop(0))
            slot = Slot(nbytes)
            self._made += 1
            return slot

    def give_back(self, slot: Slot) -> None:
        """Take a slot back; it is used again unless somebody may still read it."""
        self._back.append(slot)

    def warm(self, nbytes: int) -> None:
        """Make as many slots of a size as may lie unused, and touch their memory."""
        while True:
            with self._lock:
                if self._made >= self._spare:
                    return
                slot = Slot(nbytes)
                self._made += 1
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
        self._made -= 1


class Mappings:
    """Slots of other processes, mapped here; those that were used last stay mapped.

    Parameters
    ----------
    limit : int
        How many stay mapped.
    pin : bool, optional
        Whether a GPU reads them, by default False.
    """

    def __init__(self, limit: int, pin: bool = False) -> None:
        self._limit = limit
        self._pin = pin
        self._mapped: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, placed: Placed) -> torch.Tensor:
        """Return a slot's whole memory, uint8; raises as `Placed.open`."""
        key = placed.pid, placed.number
        with self._lock:
            if key not in self._mapped:
                descriptor = placed.open()
                try:
                    self._mapped[key] = _map(descriptor, placed.capacity)
                finally:
                    os.close(descriptor)
                if self._pin:
                    _pin(self._mapped[key])
            self._mapped.move_to_end(key)
            if len(self._mapped) > self._limit:
                self._mapped.popitem(last=False)
            return self._mapped[key]


class PrivateView:
    """A tensor in a slot of another process; what is written to it stays in this process.

    Pages are copied when they are written to, and only then, so that the owner still has the
    tensor as it was.

    Parameters
    ----------
    placed : Placed
        Where it lies.

    Attributes
    ----------
    tensor : torch.Tensor
        To be forgotten by whoever got it before :meth:`close`.

    Raises
    ------
    OSError
        As `Placed.open`.
    """

    def __init__(self, placed: Placed) -> None:
        descriptor = placed.open()
        try:
            self._map = mmap.mmap(descriptor, placed.nbytes, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
        memory = torch.from_numpy(np.frombuffer(self._map, dtype=np.uint8))
        self.tensor = memory.view(placed.dtype).reshape(placed.shape)
        self.number = placed.number

    def close(self) -> bool:
        """Unmap it; False if somebody still has the tensor, which then stays mapped."""
        del self.tensor
        try:
            self._map.close()
        except BufferError:
            return False
        return True


def view(
    memory: torch.Tensor,
    dtype: torch.dtype,
    shape: Sequence[int],
    done: Callable[[], object],
) -> torch.Tensor:
    """Return a tensor at the beginning of a slot's memory.

    Parameters
    ----------
    memory : torch.Tensor
        The slot's, uint8.
    dtype, shape : torch.dtype, Sequence[int]
        Of the tensor.
    done : Callable[[], object]
        Called once nobody has the tensor or a view of it, from any thread at any time.
    """
    array = memory.numpy()[: math.prod(shape) * dtype.itemsize]
    weakref.finalize(array, done).atexit = False
    # A storage of its own, of the tensor's size: a view would take the whole slot along.
    return torch.from_numpy(array).view(dtype).reshape(tuple(shape))


def _map(descriptor: int, nbytes: int) -> torch.Tensor:
    path = f"/proc/self/fd/{descriptor}"
    return torch.from_file(path, shared=True, size=nbytes, dtype=torch.uint8)


def _pin(memory: torch.Tensor) -> None:
    """Let a GPU read and write it without a copy in between; without one do nothing."""
    cuda: Any = torch.cuda
    if cuda.is_available() and cuda.is_initialized():
        address = memory.data_ptr()
        runtime = cuda.cudart()
        if int(runtime.cudaHostRegister(address, memory.numel(), 0)) == 0:
            weakref.finalize(memory, runtime.cudaHostUnregister, address).atexit = False
