"""Copies of large tensors in host memory, by several threads: one alone does not fill its bus."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["copy", "gather"]

_THREADS = 4  # enough for most of what a socket's memory can do
_PART = 8 * 2**20  # bytes that are worth a thread


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


def copy(x: torch.Tensor, out: torch.Tensor) -> None:
    """Do ``out.copy_(x)``, for tensors of one shape."""
    dim = next((dim for dim, size in enumerate(out.shape) if size > 1), 0)
    parts = _parts(out, out.shape[dim]) if out.ndim and x.device == out.device else 1
    if parts == 1:
        out.copy_(x)
        return
    sources, outs = x.tensor_split(parts, dim), out.tensor_split(parts, dim)
    _run(lambda part: outs[part].copy_(sources[part]), parts)


def _parts(out: torch.Tensor, most: int) -> int:
    if out.device.type != "cpu":
        return 1
    return max(1, min(_threads(), most, out.nbytes // _PART))


def _run(work: Callable[[int], object], parts: int) -> None:
    """Do all parts, the first one here."""

    def guarded(part: int) -> None:
        # Whatever mode the caller is in, its tensors can be written to in this one.
        with torch.inference_mode():
            work(part)

    if parts == 1:
        work(0)
        return
    others = [_pool().submit(guarded, part) for part in range(1, parts)]
    guarded(0)
    for other in others:
        other.result()


@functools.cache
def _threads() -> int:
    return min(_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads() - 1, thread_name_prefix="distinf-copy")
