"""On GPUs: the same bytes whatever the carrier and the ranks, and errors that GPUs make."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import xarray as xr

from testing import application
from tests.ranks.conftest import leaving_nothing
from tests.training import stores

ROOT = Path(__file__).parent.parent.parent
# So that ranks share a GPU, also where there are more: their groups then use gloo.
ONE_GPU = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
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


def gpus(ranks):
    """As many GPUs as ranks, which then use NCCL."""
    there = torch.cuda.device_count()
    return pytest.mark.skipif(there < ranks, reason=f"needs {ranks} GPUs, there are {there}")


@pytest.mark.parametrize("carrier", ["host", "cuda"])
@pytest.mark.parametrize(
    ("backend", "only"), [("gloo", ONE_GPU), pytest.param("nccl", {}, marks=gpus(4))]
)
def test_a_model_over_two_ranks_computes_on_both(run, backend, only, carrier):
    found = run("together", 4, carrier, **only)
    assert found["devices"] == ["cuda"]
    assert found["backends"] == [backend]
    assert found["sums"] == [2000.0 * step for step in range(8)]
    assert all(first == second for first, second in found["drawn"])
    assert len({first for first, _ in found["drawn"]}) == 8


@pytest.mark.parametrize("only", [ONE_GPU, pytest.param({}, marks=gpus(5))], ids=["gloo", "nccl"])
def test_a_lost_rank_loses_its_replica_and_no_task(run, only):
    found = run("rank lost", 5, "auto", **only)
    assert found["sums"] == [1000.0 * i for i in range(8)]
    assert found["left"] == 1
    assert "of its group" in found["stderr"]


def finished(folder, *runs, **variables):
    """Run main.py with each of these words at the same time, to the end of all."""
    with leaving_nothing() as environment:
        begun = [
            application.start(application.python_main(*words), folder, **environment, **variables)
            for words in runs
        ]
        for process in begun:
            outcome = application.finish(process, 300)
            assert outcome.status == 0, outcome.err


def gloo_exchanges():
    """Whether gloo has all_to_all, which the shallow-water model needs: from torch 2.12 on."""
    try:
        group = dist.ProcessGroupGloo(dist.HashStore(), 0, 1, timedelta(seconds=10))
        group.alltoall([torch.ones(1)], [torch.ones(1)]).wait()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize(
    ("nproc", "groups", "only"),
    [
        pytest.param(
            4,
            ("prognostic.ranks=2", "diagnostic.wind_decomposition.ranks=2"),
            ONE_GPU,
            marks=pytest.mark.skipif(
                not gloo_exchanges(), reason="a shared GPU needs a gloo with all_to_all"
            ),
            id="gloo",
        ),
        pytest.param(3, ("prognostic.ranks=2",), {}, marks=gpus(3), id="nccl prognostic"),
        pytest.param(
            3,
            ("diagnostic.wind_decomposition.ranks=2",),
            {},
            marks=gpus(3),
            id="nccl diagnostic",
        ),
    ],
)
def test_models_over_two_ranks_agree_with_one_rank(tmp_path, nproc, groups, only):
    """And two such runs give the same bytes."""
    common = ("prognostic.nlat=64", "prognostic.nlon=128", "diagnostic=wind_decomposition")
    common += ("parameters.nsteps=3", "output.prognostic_variables=[u850,z850]", "report=none")
    runs = {
        "one": ("runtime.nproc=1",),
        "two": (f"runtime.nproc={nproc}", *groups),
        "again": (f"runtime.nproc={nproc}", *groups),
    }
    paths = {name: f"parameters.output_path={name}.zarr" for name in runs}
    finished(tmp_path, *((*common, *runs[name], paths[name]) for name in runs), **only)
    one, two, again = (xr.open_zarr(tmp_path / f"{name}.zarr").load() for name in runs)
    assert two.equals(again)
    scales = {"u850": abs(one.u850).max(), "z850": one.z850.max() - one.z850.min()}
    scales["vo850"] = abs(one.vo850).max()
    found = {k: float(abs(two[k] - one[k]).max() / scale) for k, scale in scales.items()}
    print(found)
    # As tests/models/test_groups.py and docs/groups.md promise.
    assert max(found["u850"], found["z850"]) < 2e-6
    assert found["vo850"] < 1e-4


@pytest.mark.parametrize(
    ("nproc", "only"),
    [(1, {}), (2, ONE_GPU), pytest.param(2, {}, marks=gpus(2))],
    ids=["alone", "gloo", "nccl"],
)
def test_a_training_goes_on_with_the_same_bytes_and_its_package_diagnoses(tmp_path, nproc, only):
    stores.make(tmp_path)
    words = (*stores.SMALL, f"runtime.nproc={nproc}", "training.epochs=12")
    whole = (*words, "parameters.output_path=whole")
    part = (*words, "parameters.output_path=part", "output.mode=resume")
    with leaving_nothing(30) as environment:
        begun = [
            application.start(application.python_main(*run), tmp_path, **environment, **only)
            for run in (part, whole)
        ]
        stores.wait_for(tmp_path / "part/checkpoints/epoch_000002", begun[0])
        begun[0].kill()
        begun[0].communicate()
        outcome = application.finish(begun[1], 300)
        assert outcome.status == 0, outcome.err
    assert not (tmp_path / "part/package.json").exists()
    diagnosed = ("--config-name=archive", "data.path=in.zarr", "runtime.nproc=2")
    diagnosed += ("diagnostic=trained", "diagnostic.trained.package=whole")
    finished(tmp_path, part, diagnosed, **only)
    assert stores.package(tmp_path / "part") == stores.package(tmp_path / "whole")
    named = json.loads((tmp_path / "whole" / "package.json").read_text())
    losses = [epoch["loss"] for epoch in named["history"]]
    assert losses[-1] < 0.5 * losses[0]
    assert named["scores"]["ke"]["network"] < 0.5 * named["scores"]["ke"]["mean_at_each_point"]
    out = stores.dataset().ke.sel(time=stores.TIMES[3:])
    weight = np.cos(np.radians(out.lat))
    with xr.open_zarr(tmp_path / "archive.zarr") as found:
        error = (found.ke.sel(time=stores.TIMES[3:]) - out) ** 2
        assert named["scores"]["ke"]["network"] == pytest.approx(
            float(error.weighted(weight).mean() ** 0.5), rel=1e-3
        )


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
