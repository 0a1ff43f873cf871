"""Copies of large tensors in host memory by several threads, which use more bandwidth than one."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

_LIBC = ctypes.CDLL(None)
_THREADS = 4  # enough for most of a socket's memory bandwidth
# Bytes that a thread copies at a time: few enough to be in its cache when `look` reads them, and to
# keep the wait for a thread on a busy core short.
_BLOCK = 4 * 2**20


def gather(x: torch.Tensor, dim: int, index: torch.Tensor, out: torch.Tensor) -> None:
    """Do ``torch.index_select(x, dim, index, out=out)``; ``x`` and ``out`` are on one device."""
    blocks = _blocks(out, len(index))
    indices, outs = index.tensor_split(blocks), out.tensor_split(blocks, dim)

    def select(block: int) -> None:
        torch.index_select(x, dim, indices[block], out=outs[block])

    _run(select, blocks)


def copy(
    x: torch.Tensor, out: torch.Tensor, look: Callable[[torch.Tensor], object] | None = None
) -> None:
    """Do ``out.copy_(x)``, for tensors of one shape.

    ``look`` is called with each block of ``out`` directly after its copy, on any thread.
    """
    dim = next((dim for dim, size in enumerate(out.shape) if size > 1), 0)
    blocks = _blocks(out, out.shape[dim]) if out.ndim and x.device == out.device else 1
    sources, outs = ([x], [out]) if blocks == 1 else (t.tensor_split(blocks, dim) for t in (x, out))

    def copy_block(block: int) -> None:
        outs[block].copy_(sources[block])
        if look is not None:
            look(outs[block])

    _run(copy_block, blocks)


def _blocks(out: torch.Tensor, most: int) -> int:
    if out.device.type != "cpu" or len(_cores()) == 1:
        return 1
    return max(1, min(most, out.nbytes // _BLOCK))


def _run(work: Callable[[int], object], blocks: int) -> None:
    """Do all blocks, each on a free thread, including this one."""
    if blocks == 1:
        work(0)
        return
    todo = iter(range(blocks))

    def take_turns() -> None:
        # Tensors of every mode can be written to in inference mode.
        with torch.inference_mode():
            for block in todo:
                work(block)

    others = _helpers().submit(take_turns, blocks - 1)
    try:
        take_turns()
    finally:
        for other in others:
            if not other.cancel():  # if it has not begun, no block is left for it
                other.result()


class _Helpers:
    """Threads that copy on other cores than the calling thread.

    By default Linux runs a thread that wakes up on the core of the thread that woke it for some
    milliseconds, as long as a copy takes, while other cores are idle.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._ids: list[int] = []
        self._avoided: int | None = None
        self._pool = ThreadPoolExecutor(
            number, "distinf-copy", lambda: self._ids.append(threading.get_native_id())
        )

    def submit(self, work: Callable[[], None], most: int) -> list[Future[None]]:
        """Run the same work on at most ``most`` of these threads."""
        core = _current_core()
        if core is not None and core != self._avoided and len(self._ids) == self._number:
            self._avoided = core
            others = sorted(_cores() - {core})
            for i, thread in enumerate(self._ids):
                with contextlib.suppress(OSError):  # the process may no longer use these cores
                    os.sched_setaffinity(thread, others[i :: self._number])
        return [self._pool.submit(work) for _ in range(min(self._number, most))]


@functools.cache
def _helpers() -> _Helpers:
    return _Helpers(min(_THREADS, len(_cores())) - 1)


@functools.cache
def _cores() -> frozenset[int]:
    """Cores that this process may use; one if the system does not know."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0})


def _current_core() -> int | None:
    return int(_LIBC.sched_getcpu()) if hasattr(_LIBC, "sched_getcpu") else None
