"""Ranks on machines with addresses of their own: two network namespaces, joined by a cable."""

import os
import subprocess
import uuid

import pytest

from testing.programs import path_of
from tests.launchers.conftest import places, ranks, reported, skip_without

pytestmark = pytest.mark.slow

ADDRESSES = ("10.213.77.1", "10.213.77.2")
RANK = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_ID": "0"}
RANK |= {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": uuid.uuid4().hex}
GIVEN = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
GIVEN |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500"}


def ip(*words):
    subprocess.run([path_of("ip"), *words], check=True, timeout=30)


@pytest.fixture(scope="module")
def machines():
    """Names of two namespaces; the interface of each is ``cable0`` and ``cable1``."""
    skip_without("ip")
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    mark = uuid.uuid4().hex[:6]
    names = [f"distinf-{mark}-{i}" for i in (0, 1)]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        first, second = names
        ip("-n", first, "link", "add", "cable0", "type", "veth", "peer", "cable1", "netns", second)
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"{ADDRESSES[i]}/24", "dev", f"cable{i}")
            for interface in ("lo", f"cable{i}"):
                ip("-n", name, "link", "set", interface, "up")
        yield names
    finally:
        for name in made:
            ip("netns", "delete", name)


def on(machine, variables, *options):
    words = [f"{key}={value}" for key, value in variables.items()]
    return [path_of("ip"), "netns", "exec", machine, "env", *words, *ranks(*options)]


@pytest.mark.parametrize("how", ["slurm", "environment"])
def test_ranks_talk_over_the_interface_that_leads_to_the_driver(launch, machines, how):
    variables = []
    for i in (0, 1):
        slurm = {"SLURM_PROCID": i, "SLURM_NODEID": i, "SLURM_STEP_NODELIST": ",".join(ADDRESSES)}
        variables.append(RANK | slurm if how == "slurm" else GIVEN | {"RANK": i})
    first, second = launch(*(on(machines[i], variables[i]) for i in (0, 1)))
    (session,) = reported(first)
    assert second.status == 0, second.err
    assert places(session) == [(0, 2, 0, 1), (1, 2, 0, 1)]
    assert [rank["interface"] for rank in session] == ["cable0", "cable1"]
