"""On GPUs: the same bytes whatever the carrier and the ranks, and errors that GPUs make."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import xarray as xr

from testing import application

ROOT = Path(__file__).parent.parent.parent
MEASURES = ["accuracy", "transfer", "step", "emulated", "real", "corrdiff"]


@pytest.mark.parametrize("carrier", ["host", "cuda"])
@pytest.mark.parametrize("nproc", [2, 4])
def test_the_bytes_are_those_of_one_process(run, nproc, carrier):
    alone = run("bytes", 1)
    found = run("bytes", nproc, carrier)
    assert found["carrier"].split()[0] == carrier
    assert found["digest"] == alone["digest"]


def test_auto_says_what_it_took_and_why(run):
    found = run("bytes", 2, "auto")
    assert found["carrier"].split()[0] in ("cuda", "host")
    assert found["reason"]
    assert found["digest"] == run("bytes", 1)["digest"]


@pytest.mark.parametrize("carrier", ["host", "cuda"])
def test_a_state_may_be_overwritten_at_once(run, carrier):
    found = run("stress", 3, carrier)
    assert (found["wrong"], found["results"]) == ([], 2000)


def test_a_state_may_be_overwritten_at_once_in_one_process(run):
    assert run("stress", 1)["wrong"] == []


@pytest.mark.parametrize("carrier", ["host", "cuda"])
def test_submitting_never_waits_for_the_gpu(run, carrier):
    assert run("asynchronous", 3, carrier)["sums"] == [2.0 + step for step in range(20)]


@pytest.mark.parametrize(("nproc", "carrier"), [(1, "auto"), (3, "host"), (3, "cuda")])
def test_results_on_the_device_can_be_computed_with_at_once(run, nproc, carrier):
    found = run("device", nproc, carrier, "device")
    assert found["devices"] == ["cuda:0"]
    assert found["total"] == sum(range(40))


def test_ranks_that_share_a_gpu_are_told_of(run):
    found = run("bytes", torch.cuda.device_count() + 1, "host")
    assert "more ranks than GPUs" in found["stderr"]


def test_each_rank_sees_only_its_own(run):
    gpus = ",".join(str(i) for i in range(torch.cuda.device_count()))
    found = run("bytes", 2, "auto", torchrun=True, MASKED=gpus)
    assert found["device"] == "cuda:0"
    assert found["digest"] == run("bytes", 1)["digest"]


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_full_memory_is_told_apart_and_survived(run, nproc):
    found = run("memory", nproc)
    told = ["the GPU's memory is full" in text for text in found["errors"]]
    assert told == [False, True, False, True, False]
    assert [bool(text) for text in found["errors"]] == told
    assert found["left"] == ([0] if nproc == 1 else [1])


def test_a_worker_whose_gpu_is_poisoned_leaves_and_its_task_goes_elsewhere(run):
    found = run("assertion", 3)
    assert found["sums"] == [1000.0] * 6
    assert found["left"] == [2]
    for words in ("rank 1 was lost", "its GPU can no longer be used"):
        assert words in found["stderr"]


@pytest.mark.parametrize("carrier", ["host", "cuda"])
@pytest.mark.parametrize("drivers", [1, 2, 3])
def test_the_bytes_do_not_depend_on_the_drivers(tmp_path, drivers, carrier):
    """Of two drivers, a worker gets the states of both; of three, nothing travels."""
    small = ("prognostic.nlat=64", "prognostic.nlon=128", "recipe=diagnostic")
    few = ("parameters.nsteps=3", "parameters.ensemble=4", "output.prognostic_variables=[z850]")
    found = []
    for number, nproc in ((1, 1), (drivers, 3)):
        own = (f"runtime.drivers={number}", f"runtime.nproc={nproc}", f"runtime.carrier={carrier}")
        path = tmp_path / f"{nproc}.zarr"
        words = (*small, *few, *own, f"parameters.output_path={path}")
        done = application.run(application.python_main(*words), tmp_path, 300)
        assert done.status == 0, done.err
        with xr.open_zarr(path) as store:
            found.append(store.load())
    assert found[0].equals(found[1])
    assert all(array.all() for name, array in found[1].items() if "complete" in str(name))


def test_the_benchmark_runs(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--only", *MEASURES]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "gpu.json")],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
