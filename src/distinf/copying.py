"""Copies of large tensors in host memory, by several threads: one alone does not fill its bus."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

__all__ = ["copy", "gather"]

_THREADS = 4  # enough for most of what a socket's memory can do
# Bytes that a thread does at a time: still in the cache when it looks at them, and few enough that
# no thread waits long for another one whose core has more to do.
_PART = 4 * 2**20


def gather(x: torch.Tensor, dim: int, index: torch.Tensor, out: torch.Tensor) -> None:
    """Do ``torch.index_select(x, dim, index, out=out)``.

    Parameters
    ----------
    x, out : torch.Tensor
        On one device.
    dim, index : int, torch.Tensor
        What to take.
    """
    parts = _parts(out, len(index))
    indices, outs = index.tensor_split(parts), out.tensor_split(parts, dim)

    def select(part: int) -> None:
        torch.index_select(x, dim, indices[part], out=outs[part])

    _run(select, parts)


def copy(
    x: torch.Tensor, out: torch.Tensor, look: Callable[[torch.Tensor], object] | None = None
) -> None:
    """Do ``out.copy_(x)``, for tensors of one shape.

    Parameters
    ----------
    x, out : torch.Tensor
        The source and where it goes.
    look : Callable[[torch.Tensor], object] | None, optional
        Called with every part of ``out``, from any thread, right after it was copied.
    """
    dim = next((dim for dim, size in enumerate(out.shape) if size > 1), 0)
    parts = _parts(out, out.shape[dim]) if out.ndim and x.device == out.device else 1
    sources, outs = ([x], [out]) if parts == 1 else (t.tensor_split(parts, dim) for t in (x, out))

    def copy_part(part: int) -> None:
        outs[part].copy_(sources[part])
        if look is not None:
            look(outs[part])

    _run(copy_part, parts)


def _parts(out: torch.Tensor, most: int) -> int:
    if out.device.type != "cpu" or len(_cores()) == 1:
        return 1
    return max(1, min(most, out.nbytes // _PART))


def _run(work: Callable[[int], object], parts: int) -> None:
    """Do all parts, each on whichever thread is free, this one among them."""
    if parts == 1:
        work(0)
        return
    todo = iter(range(parts))

    def take_turns() -> None:
        # Whatever mode the caller is in, its tensors can be written to in this one.
        with torch.inference_mode():
            for part in todo:
                work(part)

    others = _helpers().submit(take_turns, parts - 1)
    try:
        take_turns()
    finally:
        for other in others:
            if not other.cancel():  # one that has not begun finds nothing left to do
                other.result()


class _Helpers:
    """Threads beside the one that copies, on other cores than it.

    Left alone, Linux lets a thread that wakes up share the core of the one that woke it for some
    milliseconds, which is as long as a copy takes, while other cores idle.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._ids: list[int] = []
        self._beside: int | None = None
        self._pool = ThreadPoolExecutor(
            number, "distinf-copy", lambda: self._ids.append(threading.get_native_id())
        )

    def submit(self, work: Callable[[], None], most: int) -> list[Future[None]]:
        """Have several of them do the same work."""
        core = _current_core()
        if core is not None and core != self._beside and len(self._ids) == self._number:
            self._beside = core
            others = sorted(_cores() - {core})
            for i, thread in enumerate(self._ids):
                with contextlib.suppress(OSError):  # somebody took cores away from this process
                    os.sched_setaffinity(thread, others[i :: self._number])
        return [self._pool.submit(work) for _ in range(min(self._number, most))]


@functools.cache
def _helpers() -> _Helpers:
    return _Helpers(min(_THREADS, len(_cores())) - 1)


@functools.cache
def _cores() -> frozenset[int]:
    """Cores that this process may use; where the system does not tell, one."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0})


def _current_core() -> int | None:
    try:
        core: int = _libc().sched_getcpu()
    except (AttributeError, OSError):
        return None
    return core


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
