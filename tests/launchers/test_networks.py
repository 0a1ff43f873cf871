"""Ranks on machines with addresses of their own: two namespaces, joined by a cable."""

import uuid

import pytest

from testing.machines import lacking, two_machines
from tests.launchers.conftest import places, ranks, reported

pytestmark = pytest.mark.slow

RANK = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_ID": "0"}
RANK |= {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": uuid.uuid4().hex}
GIVEN = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@pytest.fixture(scope="module")
def machines():
    if why := lacking():
        pytest.skip(why)
    with two_machines() as made:
        yield made


@pytest.mark.parametrize("how", ["slurm", "environment"])
def test_ranks_talk_over_the_interface_that_leads_to_the_driver(launch, machines, how):
    nodes = ",".join(machine.address for machine in machines)
    given = GIVEN | {"MASTER_ADDR": machines[0].address, "MASTER_PORT": "29500"}
    commands = []
    for i, machine in enumerate(machines):
        slurm = {"SLURM_PROCID": i, "SLURM_NODEID": i, "SLURM_STEP_NODELIST": nodes}
        variables = RANK | slurm if how == "slurm" else given | {"RANK": i}
        commands.append(machine.command(*ranks(), **variables))
    first, second = launch(*commands)
    (session,) = reported(first)
    assert second.status == 0, second.err
    assert places(session) == [(0, 2, 0, 1), (1, 2, 0, 1)]
    assert [rank["interface"] for rank in session] == [one.interface for one in machines]
