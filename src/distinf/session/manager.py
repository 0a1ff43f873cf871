"""A rank's device, and PhysicsNeMo's DistributedManager right on every rank."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from physicsnemo.distributed import DistributedManager

from distinf.session.launcher import Place

__all__ = ["device_of", "end_manager", "initialize_manager"]

# DistributedManager's own words; "env": torch.distributed's variables.
_METHODS = {"slurm": "slurm", "openmpi": "openmpi", "none": "none"}


def device_of(place: Place) -> torch.device:
    """Choose this rank's device, its GPU where there is one, and make it current."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def initialize_manager(
    place: Place, device: torch.device, store: dist.Store | None, timeout: float = 120.0
) -> None:
    """Make PhysicsNeMo's DistributedManager right on this rank.

    Its own ``initialize()`` fails without a GPU and with more ranks than GPUs, mistakes one
    launcher for another, listens on every address and waits half an hour for a missing rank
    (physicsnemo#1936, #819). So its attributes are set here, over a process group that meets
    at the session's store.
    """
    DistributedManager._shared_state["_is_initialized"] = True
    DistributedManager().__dict__.update(
        _rank=place.rank,
        _world_size=place.world_size,
        _local_rank=place.local_rank,
        _distributed=store is not None,
        _device=device,
        _cuda=device.type == "cuda",
        _initialization_method=_METHODS.get(place.launcher, "env"),
    )
    if store is not None:
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("process_group", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=timeout),
        )


def end_manager() -> None:
    """Destroy the process group, so that the next session can make its own."""
    if DistributedManager.is_initialized():
        DistributedManager.cleanup()
