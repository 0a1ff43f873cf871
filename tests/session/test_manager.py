"""Each rank's device, and what PhysicsNeMo's DistributedManager says of it."""

import pytest
import torch

from distinf.session import manager
from distinf.session.launcher import Place


@pytest.mark.parametrize(
    ("local_rank", "gpus", "device"),
    [
        (1, 4, "cuda:1"),
        (5, 4, "cuda:1"),  # more ranks than GPUs
        (3, 1, "cuda:0"),  # each rank sees only its own
        (1, 0, "cpu"),
    ],
)
def test_every_rank_has_a_device(monkeypatch, local_rank, gpus, device):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    found = manager.device_of(Place("slurm", local_rank, 8, local_rank, 8))
    assert str(found) == device
    assert chosen == ([found] if gpus else [])


@pytest.mark.parametrize(
    ("launcher", "method"),
    [("slurm", "slurm"), ("openmpi", "openmpi"), ("torchrun", "env"), ("distinf", "env")],
)
def test_the_manager_is_right(launcher, method):
    place = Place(launcher, 5, 8, 1, 4)
    manager.initialize_manager(place, torch.device("cpu"), None)
    try:
        known = manager.DistributedManager()
        assert (known.rank, known.world_size, known.local_rank) == (5, 8, 1)
        assert known.device == torch.device("cpu")
        assert known._initialization_method == method
    finally:
        manager.end_manager()
