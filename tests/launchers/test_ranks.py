"""Under each launcher the ranks are the right ones, and can open a second session."""

import os
import sys
import tempfile

import pytest

from testing.slurm import NODES
from tests.launchers.conftest import MPIRUN, free_port, places, ranks, reported, shell

pytestmark = pytest.mark.slow

BOTH_HERE = [(0, 2, 0, 2), (1, 2, 1, 2)]
ONE_EACH = [(0, 2, 0, 1), (1, 2, 0, 1)]
TWO = ["srun", "--nodes=1", "--ntasks=2"]
TWO_NODES = ["srun", "--nodes=2", "--ntasks=2"]


def ranks_of(outcome, launcher):
    sessions = reported(outcome)
    assert {rank["launcher"] for session in sessions for rank in session} == {launcher}
    assert {rank["device"] for session in sessions for rank in session} <= {"cpu", "cuda:0"}
    return [places(session) for session in sessions]


def test_two_mpiruns_at_the_same_time(launch):
    command = [*MPIRUN, "-np", "2", *ranks("sessions=2")]
    both = launch(command, command)
    for outcome in both:
        assert ranks_of(outcome, "openmpi") == [BOTH_HERE, BOTH_HERE]
        assert {rank["interface"] for rank in reported(outcome)[0]} == {"lo"}
    pids = [rank["pid"] for outcome in both for rank in reported(outcome)[0]]
    assert len(set(pids)) == 4
    left = f"{tempfile.gettempdir()}/distinf-{os.getuid()}"
    assert not [name for name in os.listdir(left) if name.endswith(".port")]


def test_two_sruns_at_the_same_time_on_one_node_and_on_two(launch, slurm):
    one, two = launch(
        [*TWO, "--overlap", *ranks("sessions=2")],
        [*TWO_NODES, "--overlap", *ranks("sessions=2")],
        **slurm,
    )
    assert ranks_of(one, "slurm") == [BOTH_HERE, BOTH_HERE]
    assert ranks_of(two, "slurm") == [ONE_EACH, ONE_EACH]
    assert [rank["node"] for rank in reported(two)[0]] == list(NODES)


def test_mpirun_in_sbatch(sbatch):
    outcome = sbatch(shell([*MPIRUN, *ranks()]), "--ntasks=2", "--nodes=1")
    assert ranks_of(outcome, "openmpi") == [BOTH_HERE]


def test_mpirun_in_salloc_and_in_a_task_of_srun(launch, slurm):
    alone = ["salloc", "--nodes=1", "--ntasks=2", *MPIRUN, *ranks()]
    inside = ["srun", "--nodes=1", "--ntasks=1", *MPIRUN, "-np", "2", *ranks()]
    for outcome in launch(alone, inside, **slurm):
        assert ranks_of(outcome, "openmpi") == [BOTH_HERE]


def test_mpirun_on_two_nodes(launch, slurm):
    """It starts its daemon on the second node by srun."""
    command = ["salloc", "--nodes=2", "--ntasks=2", *MPIRUN, *ranks("sessions=2")]
    outcome = launch(command, **slurm)
    assert ranks_of(outcome, "openmpi") == [ONE_EACH, ONE_EACH]
    assert [rank["node"] for rank in reported(outcome)[0]] == list(NODES)


def torchrun(*options):
    return [sys.executable, "-m", "torch.distributed.run", *options, *ranks("sessions=2")[1:]]


def test_two_torchruns_with_an_endpoint(launch):
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    options += [f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-id=test"]
    outcomes = launch(torchrun(*options), torchrun(*options))
    assert {outcome.status for outcome in outcomes} == {0}, outcomes
    sessions = [session for outcome in outcomes for session in reported(outcome)]
    assert [places(session) for session in sessions] == [ONE_EACH, ONE_EACH]


def test_torchrun_on_each_node_of_srun(launch, slurm):
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    options += [f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-id=test"]
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", *torchrun(*options)]
    assert ranks_of(launch(command, **slurm), "torchrun") == [ONE_EACH, ONE_EACH]


def test_master_addr_and_port_win(launch, slurm):
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    command = [*TWO_NODES, *ranks("sessions=2")]
    assert ranks_of(launch(command, **slurm, **address), "slurm") == [ONE_EACH, ONE_EACH]


def test_ranks_from_the_environment_alone(launch):
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    commands = [["env", f"RANK={rank}", *ranks("sessions=2")] for rank in (0, 1)]
    first, second = launch(*commands, **world)
    assert ranks_of(first, "environment") == [BOTH_HERE, BOTH_HERE]
    assert second.status == 0
