"""Make the process groups of ranks that run models together, and leave them."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from distinf.transport import RankGroup, end_leading, follow, lead

# Under which models of PhysicsNeMo find their group.
NAME = "model_parallel"
# A lost rank is found by its signs of life, not by a collective that takes too long.
_NEVER = timedelta(days=365)
_STOP_SECONDS = 3.0


class GroupMember:
    """Joins this rank to a group.

    ``gpus`` are those of the ranks. ``unusable`` is called with the reason when this rank can no
    longer be used. ``first`` is the rank that is 0 in torch's default process group. ``pack``
    pickles what the first rank of a group sends.
    """

    def __init__(
        self,
        rank: int,
        device: torch.device,
        gpus: Mapping[int, str],
        store: dist.Store,
        unusable: Callable[[str], None],
        first: int = 0,
        pack: Callable[[Any], bytes] = pickle.dumps,
    ) -> None:
        self._rank, self._device, self._gpus, self._store = rank, device, gpus, store
        self._unusable, self._first, self._pack = unusable, first, pack
        self._following: threading.Thread | None = None

    def join(self, *ranks: int) -> None:
        """Form a group with other ranks, which call this, too; the first one leads."""
        known = [rank - self._first for rank in ranks]  # to torch
        words = dist.new_group(known, _NEVER, "gloo", use_local_synchronization=True)
        gpus = {self._gpus[rank] for rank in ranks} - {""}
        backend = "nccl" if len(gpus) == len(ranks) else "gloo"  # NCCL refuses a shared GPU
        model = dist.new_group(known, _NEVER, backend, use_local_synchronization=True)
        _register(model, known)
        own = self._store, self._device, self._pack
        group = RankGroup(tuple(ranks), self._rank, words, model, *own)
        if self._rank == ranks[0]:
            lead(group, self._unusable)
        else:
            self._following = threading.Thread(
                target=follow, args=(group,), name="distinf-follow", daemon=True
            )
            self._following.start()

    def follow(self) -> None:
        """Return when this rank has nothing more to do: its first one is gone, or has said so."""
        if self._following is not None:
            self._following.join()

    def leave(self) -> None:
        """Leave the group, if this rank is in one: a rank that follows waits for the first one."""
        end_leading()
        if self._following is not None:
            self._following.join(_STOP_SECONDS)


def _register(group: Any, ranks: list[int]) -> None:
    """Enter a group where DistributedManager.create_process_subgroup does.

    That one divides all ranks evenly, so rank 0 could not have a group of another size.
    """
    from physicsnemo.distributed import DistributedManager

    manager = DistributedManager()
    manager._groups[NAME] = group
    manager._group_ranks[NAME] = [ranks]
    manager._group_names[group] = NAME
