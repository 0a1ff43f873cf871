"""Set up a rank's process: device, freed memory, PhysicsNeMo's DistributedManager."""

from __future__ import annotations

import ctypes
import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist

from distinf.compiler import delayed_compiler
from distinf.errors import SessionError
from distinf.session.launcher import RankInfo

# DistributedManager's names of launchers; all others set torch.distributed's variables ("env").
_METHODS = ("slurm", "openmpi", "none")

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 512 * 2**20  # bytes that may lie unused at the end of a heap
_LARGE = 32 * 2**20  # bytes; a larger piece always goes back to the system; glibc's maximum
_SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def choose_device(info: RankInfo) -> torch.device:
    """Choose this rank's device, its GPU where there is one, and make it current."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", info.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """Let this process keep freed pieces of up to 32 MiB and use them again.

    By default glibc returns them to the system, which must clear each page before its next use: a
    third of the time of writing a result. Nothing changes with another C library, or where the
    environment sets glibc's malloc.
    """
    if any(name in os.environ for name in _SET_BY_USER):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)


def initialize_manager(
    info: RankInfo, device: torch.device, store: dist.Store | None, timeout: float = 120.0
) -> None:
    """Initialize DistributedManager, with a process group over the session's store.

    Its own ``initialize()`` fails without a GPU and with more ranks than GPUs, mistakes one
    launcher for another, listens on every address and waits half an hour for a missing rank
    (physicsnemo#1936, #819). So its attributes are set here. Raises `SessionError` if the group is
    not formed in ``timeout`` seconds.
    """
    with delayed_compiler():
        from physicsnemo.distributed import DistributedManager

    if store is not None:
        try:
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore("process_group", store),
                rank=info.rank,
                world_size=info.world_size,
                timeout=timedelta(seconds=timeout),
            )
        except RuntimeError as error:
            raise SessionError(
                f"rank {info.rank} on {socket.gethostname()} could not join the process group of "
                f"{info.world_size} ranks ({str(error).splitlines()[0]})"
            ) from error
    DistributedManager._shared_state["_is_initialized"] = True
    DistributedManager().__dict__.update(
        _rank=info.rank,
        _world_size=info.world_size,
        _local_rank=info.local_rank,
        _distributed=store is not None,
        _device=device,
        _cuda=device.type == "cuda",
        _initialization_method=info.launcher if info.launcher in _METHODS else "env",
    )


def end_manager() -> None:
    """Destroy the process group, so that the next session can create its own."""
    from physicsnemo.distributed import DistributedManager

    if DistributedManager.is_initialized():
        DistributedManager.cleanup()
