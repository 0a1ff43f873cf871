"""Each rank's device, what DistributedManager says of it, and the memory that it frees."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from distinf import DistributedManager
from distinf.errors import SessionError
from distinf.session import local_ranks, process
from distinf.session.launcher import RankInfo


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
    found = process.choose_device(RankInfo("slurm", local_rank, 8, local_rank, 8))
    assert str(found) == device
    assert chosen == ([found] if gpus else [])


@pytest.mark.parametrize(
    ("launcher", "method"),
    [("slurm", "slurm"), ("openmpi", "openmpi"), ("torchrun", "env"), ("distinf", "env")],
)
def test_the_manager_is_right(launcher, method):
    info = RankInfo(launcher, 5, 8, 1, 4)
    process.initialize_manager(info, torch.device("cpu"), None)
    try:
        known = DistributedManager()
        assert (known.rank, known.world_size, known.local_rank) == (5, 8, 1)
        assert known.device == torch.device("cpu")
        assert known._initialization_method == method
    finally:
        process.end_manager()


def test_a_group_that_is_not_formed_is_an_error_of_the_session():
    """As after the end of another rank between the rendezvous and here."""
    info = RankInfo("slurm", 0, 2, 0, 2)
    with pytest.raises(SessionError, match=r"rank 0 on .* process group of 2 ranks \(.*imeout"):
        process.initialize_manager(info, torch.device("cpu"), dist.HashStore(), timeout=0.5)
    assert not DistributedManager.is_initialized()
    process.end_manager()


# Pages of the system that 40 MB in pieces, taken and freed again and again, cost in the last round.
ROUNDS = """
import ctypes, resource, sys
from distinf.session.process import keep_freed_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: one fault would take in 2 MB
if "keep" in sys.argv:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    before = faults()
    pieces = [b"x" * (4 * 2**20 + i) for i in range(10)]
    del pieces
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "environment", "stays"),
    [("keep", {}, True), ("", {}, False), ("keep", {"MALLOC_TRIM_THRESHOLD_": "0"}, False)],
)
def test_freed_memory_stays_unless_the_environment_says_otherwise(word, environment, stays):
    """Without it the pages come from the system each time, or the test would show nothing."""
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, word],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    pages = 10 * 4 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert (int(done.stdout) < pages / 10) is stays


@pytest.mark.slow
def test_what_is_imported_before_the_fork_starts_no_cuda():
    code = f"""
import importlib
for name in {local_ranks._PRELOADED}:
    importlib.import_module(name)
import torch, warp._src.context
assert not torch.cuda.is_initialized()
assert warp._src.context.runtime is None
assert "/libcuda.so" not in open("/proc/self/maps").read()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
