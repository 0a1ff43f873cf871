"""Who started this process, from the environments that real launchers were seen to set."""

import pytest

from distinf.errors import ConfigError
from distinf.session.launcher import (
    _expand_hosts,
    _tasks_per_node,
    default_nproc,
    lets_survivors_live,
    likely_cause,
    rank_info,
    tells_errors,
)

MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "167116800.0;tcp://192.0.2.2,198.51.100.7:58295;tcp6://[fd00::2]:35353",
    "OMPI_MCA_orte_local_daemon_uri": "167116800.0;tcp://192.0.2.2,198.51.100.7:58295;tcp6://[fd00::2]:35353",
    "OMPI_MCA_orte_precondition_transports": "0f4654afa546a7c5-f7ea407be4008836",
    "PMIX_NAMESPACE": "167116801",
}
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_SRUN_COMM_PORT": "40981",
}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
ONE_TASK = {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "a",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "2",
}
HERE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
OWN = {**HERE, "DISTINF_RANKS": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (MPIRUN, ("openmpi", 1, 2, 1, 2)),
        (STEP, ("slurm", 2, 3, 0, 1)),
        (TORCHRUN, ("torchrun", 3, 4, 1, 2)),
        (HERE, ("environment", 1, 2, 1, 2)),
        (OWN, ("distinf", 1, 2, 1, 2)),
        # The innermost decides.
        ({**STEP, **TORCHRUN}, ("torchrun", 3, 4, 1, 2)),
        ({**BATCH, **MPIRUN}, ("openmpi", 1, 2, 1, 2)),
        ({**ONE_TASK, **MPIRUN}, ("openmpi", 1, 2, 1, 2)),
        ({**BATCH, **MPIRUN, **OWN}, ("distinf", 1, 2, 1, 2)),
        ({**STEP, **OWN}, ("distinf", 1, 2, 1, 2)),
    ],
)
def test_the_innermost_launcher_decides(env, expected):
    info = rank_info(env)
    found = (
        info.launcher,
        info.rank,
        info.world_size,
        info.local_rank,
        info.local_world_size,
    )
    assert found == expected
    assert not info.superfluous


@pytest.mark.parametrize(
    "env",
    [
        {},
        BATCH,
        {**BATCH, "SLURM_STEP_ID": "4294967291"},  # the batch script's own step
        {**BATCH, "SLURM_STEP_ID": "4294967290"},  # the interactive one of salloc
        {**BATCH, "SLURM_STEP_ID": "batch"},
        ONE_TASK,
    ],
)
def test_where_there_is_one_process_no_launcher_started_ranks(env):
    assert rank_info(env) is None


def test_slurm_names_the_nodes_and_the_launch():
    info = rank_info(STEP)
    assert info.hosts == ("gpu07", "gpu08")
    assert not info.on_one_node
    first = rank_info({**STEP, "SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert (first.local_world_size, first.job) == (2, info.job)
    assert rank_info({**STEP, "SLURM_STEP_ID": "1"}).job != info.job


def test_mpirun_names_its_host_and_the_launch():
    info = rank_info(MPIRUN)
    assert info.hosts == ("192.0.2.2", "198.51.100.7")
    other = {**MPIRUN, "OMPI_MCA_orte_precondition_transports": "1-2"}
    assert rank_info(other).job != info.job


@pytest.mark.parametrize("task", ["0", "1"])
def test_of_the_mpiruns_of_one_step_only_the_first_computes(task):
    env = {**STEP, **MPIRUN, "SLURM_PROCID": task}
    assert rank_info(env).superfluous == (task != "0")


def test_mpirun_s_ranks_on_further_nodes_are_not_superfluous():
    """Its daemons there are tasks of a step, and hand their number on."""
    env = {**STEP, **MPIRUN, "OMPI_MCA_orte_local_daemon_uri": "167116800.1;tcp://192.0.2.3:4"}
    assert not rank_info(env).superfluous


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({**HERE, "RANK": "x"}, ["RANK=x", "whole number"]),
        ({**HERE, "RANK": "²"}, ["RANK=²", "whole number"]),
        ({**HERE, "RANK": "2"}, ["rank 2 of 2"]),
        ({**HERE, "LOCAL_RANK": "-1"}, ["LOCAL_RANK=-1"]),
        ({**HERE, "LOCAL_RANK": "2"}, ["local rank 2 of 2"]),
        ({"WORLD_SIZE": "2"}, ["RANK is not set"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["MASTER_ADDR and MASTER_PORT"]),
        ({**HERE, "MASTER_ADDR": "gpu07"}, ["LOCAL_RANK is not set"]),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, ["process 1 of 2", "MPI", "MASTER_ADDR"]),
        ({**STEP, **TORCHRUN, "GROUP_WORLD_SIZE": "1"}, ["3 torchruns", "--nnodes"]),
    ],
)
def test_a_wrong_launch_is_refused(env, words):
    with pytest.raises(ConfigError) as caught:
        rank_info(env)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "env",
    [
        {**BATCH, "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "4"},
        {**BATCH, "SLURM_NNODES": "2", "SLURM_TASKS_PER_NODE": "1(x2)"},
    ],
)
def test_own_ranks_are_not_started_where_srun_was_meant(env):
    with pytest.raises(ConfigError, match="without srun"):
        default_nproc(env)


def test_own_ranks_are_started_in_a_batch_script_of_one_task():
    assert default_nproc({**BATCH, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}) >= 2


def test_a_missing_srun_is_named_as_the_cause():
    env = {**BATCH, **HERE}
    assert "sbatch or salloc without srun" in likely_cause(rank_info(env), env)


@pytest.mark.parametrize(
    ("short", "hosts"),
    [
        ("", []),
        ("login", ["login"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("login,gpu[08-10,7]-ib", ["login", "gpu08-ib", "gpu09-ib", "gpu10-ib", "gpu7-ib"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
    ],
)
def test_slurm_s_short_form_of_hosts(short, hosts):
    assert _expand_hosts(short) == hosts


def test_slurm_s_short_form_of_tasks():
    assert _tasks_per_node("2(x3),1") == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("env", "live"),
    [
        (MPIRUN, False),
        ({**MPIRUN, "OMPI_MCA_orte_enable_recovery": "1"}, True),
        (STEP, True),
        ({**STEP, "SLURM_KILL_BAD_EXIT": "1"}, False),
        (TORCHRUN, False),
    ],
)
def test_which_launchers_let_survivors_live(env, live):
    assert lets_survivors_live(rank_info(env), env) is live


def launched(kind, size=3):
    """Environments of all ranks of a launch on one node."""
    ranks = [str(rank) for rank in range(size)]
    if kind == "openmpi":
        shared = {**MPIRUN, "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    elif kind == "slurm":
        shared = {**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"}
        names = ("SLURM_PROCID", "SLURM_LOCALID")
    else:
        shared = {**HERE, "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
        shared |= {"TORCHELASTIC_RUN_ID": "a"} if kind == "torchrun" else {}
        names = ("RANK", "LOCAL_RANK")
    return [{**shared, **dict.fromkeys(names, rank)} for rank in ranks]


LAUNCHES = ("openmpi", "slurm", "torchrun", "environment")


def tellers(ranks):
    return [rank for rank, env in enumerate(ranks) if tells_errors(env)]


@pytest.mark.parametrize("kind", LAUNCHES)
def test_one_rank_tells_an_error(kind):
    assert tellers(launched(kind)) == [0]


@pytest.mark.parametrize("around", [{}, BATCH], ids=["alone", "in a batch script"])
@pytest.mark.parametrize("wrong", ["x", "-1", "", "9", None])
@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in LAUNCHES for name in sorted(launched(kind)[0])],
)
def test_a_wrong_variable_of_all_ranks_is_told_once(kind, name, wrong, around):
    ranks = [{**(around if kind != "slurm" else {}), **env} for env in launched(kind)]
    for env in ranks:
        env[name] = wrong
        if wrong is None:
            del env[name]
    one = name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK") and wrong == "9"
    if all(refused(env) for env in ranks):
        # Each alone may have a number that cannot be.
        assert tellers(ranks) == ([0, 1, 2] if one else [0])


def refused(env):
    try:
        rank_info(env)
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize("kind", LAUNCHES)
def test_a_rank_whose_own_variables_are_wrong_tells_so_itself(kind):
    """Rank 0 waits for it, and does not know why it does not come."""
    ranks = launched(kind)
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        if name in ranks[2]:
            ranks[2][name] = "3"
    assert refused(ranks[2])
    assert tellers(ranks) == [0, 2]


def test_ranks_of_several_nodes_that_take_their_number_for_the_one_on_the_node():
    on_two = {**HERE, "MASTER_ADDR": "gpu07", "LOCAL_WORLD_SIZE": "1"}
    ranks = [{**on_two, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    assert [refused(env) for env in ranks] == [False, True]
    assert tells_errors(ranks[1])
