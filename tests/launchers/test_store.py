"""Under each launcher there is one store, with the same bytes as from one process."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from testing.application import environment, python_main
from testing.programs import missing
from tests.launchers.conftest import MPIRUN, STORE, TINY, chunks, ended, main_py, shell

DOCS = "srun", "--nodes=1", "--ntasks-per-node=2"


def check(outcome, folder, alone):
    assert outcome.status == 0, f"{outcome.out}\n{outcome.err}"
    assert sum(text.count("Wall time") for text in {outcome.out, outcome.err}) == 1
    assert "error" not in outcome.err
    assert [path.name for path in folder.glob("*.zarr")] == [STORE]
    assert chunks(folder / STORE) == alone


@pytest.mark.slow
@pytest.mark.skipif(bool(missing("mpirun")), reason=missing("mpirun"))  # before `alone` runs
def test_mpirun(launch, alone, tmp_path):
    check(launch([*MPIRUN, "-np", "2", *main_py(*TINY)]), tmp_path, alone)


@pytest.mark.slow
def test_srun_on_two_nodes(launch, alone, slurm, tmp_path):
    command = ["srun", "--nodes=2", "--ntasks=2", *main_py(*TINY, "runtime.expect_ranks=2")]
    check(launch(command, **slurm), tmp_path, alone)


@pytest.mark.slow
def test_mpirun_in_every_task_of_srun(launch, alone, slurm, tmp_path):
    """The form in Earth2Studio's documentation: one run of two ranks, not two runs."""
    script = tmp_path / "script"
    script.write_text(shell(["mpirun", "--allow-run-as-root", *main_py(*TINY)]))
    script.chmod(0o755)
    outcome = launch([*DOCS, "./script"], **slurm)
    check(outcome, tmp_path, alone)
    (line,) = [line for line in outcome.err.splitlines() if "distinf:" in line]
    for word in ("mpirun", "2 tasks", "2 rank(s)", "task 1", "not needed"):
        assert word in line


@pytest.mark.slow
def test_plain_python_in_a_batch_script_of_one_task(sbatch, alone, tmp_path):
    script = shell(main_py(*TINY, "runtime.expect_ranks=3"))  # its own ranks: here is no GPU
    check(sbatch(script, "--ntasks=1"), tmp_path, alone)


def printed(folder, *options):
    """Return the batch script that main.py prints."""
    said = subprocess.run(
        python_main(*TINY, *options),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return said.stdout


@pytest.mark.slow
def test_the_printed_batch_script(sbatch, alone, tmp_path):
    options = ["slurm.nodes=1", "slurm.ntasks_per_node=2", "slurm.name=printed"]
    options += ["slurm.requeue=true", "slurm.environment={COLOUR: 'light red'}"]
    options += ["slurm.lines_before=['echo $COLOUR $SLURM_JOB_NAME']"]
    script = printed(tmp_path, *options)
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=printed\n")
    assert f" {shlex.join(TINY)} " in script
    assert sys.executable in script
    assert list(tmp_path.iterdir()) == []  # printed, not run
    outcome = sbatch(script)
    assert outcome.out.startswith("light red printed\n")
    check(outcome, tmp_path, alone)


@pytest.mark.slow
def test_the_printed_batch_script_on_ray(sbatch, alone, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    own = ["runtime.engine=ray", "runtime.workers=1", "slurm.nodes=1"]
    script = printed(tmp_path, *own)
    # As from a shell without this environment, whose `ray` must be found nevertheless.
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != here)
    outcome = sbatch(script, f"--export=ALL,PATH={path}")
    assert outcome.status == 0, f"{outcome.out}\n{outcome.err}"
    assert "Starting Ray cluster head" in outcome.out
    assert chunks(tmp_path / STORE) == alone


@pytest.mark.slow
def test_submitted_at_once(slurm, launch):
    """What it runs is tested above; here the job ends before that."""
    options = ["slurm.nodes=2", "slurm.action=submit", "slurm.lines_before=[exit 0]"]
    submitted = launch(python_main(*options), **slurm)
    assert submitted.status == 0, submitted.err
    assert submitted.out.startswith("submitted batch job ")
    assert ended(submitted.out.split()[-1], slurm) == 0
