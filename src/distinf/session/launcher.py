"""Which launcher started this process, and which of its ranks this is.

Without torch, because every rank calls this first.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from distinf.errors import ConfigError
from distinf.parent import when_parent_ends

# Variables that hold a rank's number, or the one on its node, which may replace it.
_OWN = {
    "environment": ("RANK", "LOCAL_RANK", "PMI_RANK"),
    "openmpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_LOCALID", "RANK"),
}
# Slurm's ids of steps that srun did not start: batch script, extern, interactive shell.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
_END_SECONDS = 20.0

_CAUSES = {
    "torchrun": "another torchrun of this rendezvous failed, or its process ended",
    "openmpi": "that process ended, or ranks do not share a temporary folder or a network; "
    "MASTER_ADDR and MASTER_PORT say where to meet",
    "slurm": "that task ended or hangs before this line (see its output), or cannot reach this "
    "node; MASTER_ADDR and MASTER_PORT say where to meet",
    "environment": "not all ranks were started, or with another MASTER_ADDR or MASTER_PORT",
    "distinf": "that process hangs while it imports",
}


@dataclass(frozen=True)
class RankInfo:
    """One rank among those of its launcher; numbers as in torch.distributed."""

    launcher: str  # "distinf", "torchrun", "openmpi", "slurm", "environment" (RANK is set), "none"
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    job: str = ""  # an id that only the ranks of this launch share; empty: unknown
    hosts: tuple[str, ...] = ()  # its nodes, rank 0's first; empty: unknown
    superfluous: bool = False  # another copy of this launch computes instead

    @property
    def on_one_node(self) -> bool:
        """Whether all ranks are on this machine."""
        return self.local_world_size == self.world_size


ALONE = RankInfo("none", 0, 1, 0, 1)


def _under_symmetric_run() -> bool:
    """Whether ``ray symmetric-run`` started this process: once, though it runs in each task."""
    import psutil

    try:
        return any("symmetric-run" in above.cmdline() for above in psutil.Process().parents())
    except psutil.Error:
        return False


def rank_info(environ: Mapping[str, str] | None = None) -> RankInfo | None:
    """Find out which launcher started this process; of several, the innermost.

    Parameters
    ----------
    environ : Mapping[str, str] | None, optional
        The environment, by default that of this process.

    Returns
    -------
    RankInfo | None
        None when no launcher did. A Slurm step of one task counts as none, so that ``python
        main.py`` in an interactive step uses all its GPUs.

    Raises
    ------
    ConfigError
        If variables contradict one another or are missing.
    """
    env = os.environ if environ is None else environ
    if {"SLURM_PROCID", "OMPI_COMM_WORLD_RANK"} & set(env) and _under_symmetric_run():
        return None
    if "DISTINF_RANKS" in env:
        info = _from_environment(env, "distinf")
    elif "TORCHELASTIC_RUN_ID" in env and "RANK" in env:
        info = _from_environment(env, "torchrun")
        _refuse_copies_of_torchrun(env)
    elif "OMPI_COMM_WORLD_RANK" in env:
        info = _from_openmpi(env)
    elif _tasks_of_step(env) > 1:
        info = _from_slurm(env)
    elif "RANK" in env or "WORLD_SIZE" in env:
        info = _from_environment(env, "environment")
    else:
        if _number(env, "PMI_SIZE", 1) > 1 and "SLURM_JOB_ID" not in env:
            raise ConfigError(
                f"this is process {env.get('PMI_RANK', '?')} of {env['PMI_SIZE']} of an MPI "
                "launcher that distinf does not know: use Open MPI's mpirun, srun or torchrun, or "
                "set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
            )
        return None
    for name, value, size in (
        ("rank", info.rank, info.world_size),
        ("local rank", info.local_rank, info.local_world_size),
    ):
        if not 0 <= value < size:
            raise ConfigError(
                f"{name} {value} of {size} cannot be (set by {info.launcher}): it counts from 0"
            )
    return info


def tells_errors(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this rank prints an error that ends all ranks, so that it is printed once.

    Rank 0 does. So does a rank that alone has wrong launcher variables: rank 0 does not know.
    """
    env = dict(os.environ if environ is None else environ)
    try:
        info = rank_info(env)
        return info is None or info.rank == 0
    except ConfigError:
        pass
    launcher = "environment"
    if "DISTINF_RANKS" not in env and not ("TORCHELASTIC_RUN_ID" in env and "RANK" in env):
        in_step = env.get("SLURM_STEP_ID", "").isdecimal()
        launcher = "slurm" if in_step and "SLURM_PROCID" in env else launcher
        launcher = "openmpi" if "OMPI_COMM_WORLD_RANK" in env else launcher
    numbers = {name: env.get(name, "").strip() for name in _OWN[launcher]}
    numbers = {name: text.lstrip("0") for name, text in numbers.items() if text.isdecimal()}
    own = next(iter(numbers.values()), "")
    if not own:
        return True
    # Rank 0's environment, as far as this rank can know it.
    env.update((name, "0") for name, text in numbers.items() if text == own)
    if env.get("SLURM_NODEID", "").isdecimal():
        env["SLURM_NODEID"] = "0"
    try:
        rank_info(env)
    except ConfigError:
        return False  # rank 0 prints it
    return True


def _from_environment(env: Mapping[str, str], launcher: str) -> RankInfo:
    """Read torch.distributed's own variables."""
    rank, world_size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    if launcher == "environment" and world_size > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env]
        if missing:
            raise ConfigError(
                f"RANK={rank} and WORLD_SIZE={world_size} are set, but not "
                f"{' and '.join(missing)}: without them the ranks cannot find each other"
            )
        # Only on one machine the local rank is the rank.
        if not env["MASTER_ADDR"].startswith(("localhost", "127.", "::1")):
            _number(env, "LOCAL_RANK")
            _number(env, "LOCAL_WORLD_SIZE")
    return RankInfo(
        launcher=launcher,
        rank=rank,
        world_size=world_size,
        local_rank=_number(env, "LOCAL_RANK", rank),
        local_world_size=_number(env, "LOCAL_WORLD_SIZE", world_size),
        job=env.get("TORCHELASTIC_RUN_ID", ""),
    )


def _refuse_copies_of_torchrun(env: Mapping[str, str]) -> None:
    tasks = _tasks_of_step(env)
    if tasks > 1 and env.get("GROUP_WORLD_SIZE") == "1":
        raise ConfigError(
            f"srun started {tasks} torchruns that do not know of each other, and each would "
            "compute everything: use `srun --ntasks-per-node=1 torchrun --nnodes=...` with a "
            "rendezvous endpoint, or srun alone"
        )


def _from_openmpi(env: Mapping[str, str]) -> RankInfo:
    world_size = _number(env, "OMPI_COMM_WORLD_SIZE")
    local_size = _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE")
    head = env.get("OMPI_MCA_orte_hnp_uri")
    if head is None:
        beside_mpirun = local_size == world_size
    else:
        # On other nodes mpirun's daemons are tasks of another Slurm step.
        beside_mpirun = head == env.get("OMPI_MCA_orte_local_daemon_uri", head)
    addresses = re.findall(r"tcp://([^:;]+):", head or "")
    return RankInfo(
        launcher="openmpi",
        rank=_number(env, "OMPI_COMM_WORLD_RANK"),
        world_size=world_size,
        local_rank=_number(env, "OMPI_COMM_WORLD_LOCAL_RANK"),
        local_world_size=local_size,
        # A random number of this mpirun; the number of this launch, with mpirun's pid.
        job=_digest("openmpi", env, "OMPI_MCA_orte_precondition_transports", "PMIX_NAMESPACE"),
        # Addresses of the node on which mpirun was called, where its rank 0 runs by default.
        hosts=tuple(
            addresses[0].split(",")
            if addresses
            else _expand_hosts(env.get("SLURM_JOB_NODELIST", ""))
        ),
        superfluous=beside_mpirun and _tasks_of_step(env) > 1 and _number(env, "SLURM_PROCID") != 0,
    )


def _from_slurm(env: Mapping[str, str]) -> RankInfo:
    counts = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = _number(env, "SLURM_NODEID")
    world_size = _tasks_of_step(env)
    nodes = _number(env, "SLURM_STEP_NUM_NODES", len(counts) or 1)
    if nodes > 1 and node >= len(counts):
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE={env.get('SLURM_STEP_TASKS_PER_NODE')} has no node "
            f"{node}: was this started by srun?"
        )
    return RankInfo(
        launcher="slurm",
        rank=_number(env, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(env, "SLURM_LOCALID"),
        local_world_size=counts[node] if nodes > 1 else world_size,
        # The port, because two clusters may use the same numbers for their jobs.
        job=_digest(
            "slurm",
            env,
            "SLURM_CLUSTER_NAME",
            "SLURM_JOB_ID",
            "SLURM_STEP_ID",
            "SLURM_SRUN_COMM_PORT",
        ),
        hosts=tuple(_expand_hosts(env.get("SLURM_STEP_NODELIST", ""))),
    )


def _digest(launcher: str, env: Mapping[str, str], *names: str) -> str:
    values = [launcher, *(env.get(name, "") for name in names)]
    return hashlib.sha256("\0".join(values).encode()).hexdigest()[:32]


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Read a variable that holds a count or an index."""
    text = env.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise ConfigError(
            f"{name} is not set, although other variables of a launcher are: start every rank "
            "with the launcher, or unset RANK and WORLD_SIZE"
        )
    if not text.strip().isdecimal():
        raise ConfigError(f"{name}={text}: must be a whole number, at least 0")
    return int(text)


def _tasks_of_step(env: Mapping[str, str]) -> int:
    """Count the tasks of the srun that this process is in; 0 if it is in none."""
    step = env.get("SLURM_STEP_ID", "")
    if not step.isdecimal() or int(step) >= _FIRST_SPECIAL_STEP or "SLURM_PROCID" not in env:
        return 0
    return _number(env, "SLURM_STEP_NUM_TASKS", _number(env, "SLURM_NTASKS", 1))


def _tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's short form: ``"2(x3),1"`` is 2, 2, 2, 1."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def _expand_hosts(text: str) -> list[str]:
    """Expand Slurm's short form: ``"login,gpu[01-02]-ib"`` is login, gpu01-ib, gpu02-ib."""
    hosts: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        parts = [_expand_part(part) for part in re.split(r"(\[[^\]]*\])", name)]
        hosts += ["".join(combination) for combination in itertools.product(*parts)]
    return hosts


def _expand_part(part: str) -> list[str]:
    if not part.startswith("["):
        return [part]
    numbers: list[str] = []
    for item in part[1:-1].split(","):
        first, _, last = item.partition("-")
        width = len(first)
        numbers += [f"{n:0{width}d}" for n in range(int(first), int(last or first) + 1)]
    return numbers


def likely_cause(info: RankInfo, environ: Mapping[str, str] | None = None) -> str:
    """Say in a sentence why ranks may be missing."""
    env = os.environ if environ is None else environ
    cause = _CAUSES.get(info.launcher, "unknown")
    if info.launcher == "environment" and "SLURM_JOB_ID" in env and not _tasks_of_step(env):
        cause = (
            "started under sbatch or salloc without srun, so that only one rank exists: write "
            "`srun python ...`, without setting RANK and WORLD_SIZE"
        )
    return f"Likely cause: {cause}"


def late(info: RankInfo, began: float, missing: str) -> str:
    """Say for what this rank has waited since ``began``, on the monotonic clock, and why."""
    return (
        f"rank {info.rank} on {socket.gethostname()} waited {time.monotonic() - began:.0f} s "
        f"(runtime.start_timeout) for {missing}. {likely_cause(info)}"
    )


def leave_if_superfluous(info: RankInfo | None) -> None:
    """End this process, with status 0, if another copy of its mpirun computes instead."""
    if info is None or not info.superfluous:
        return
    if info.rank == 0:
        print(
            "distinf: srun started mpirun once for each of its "
            f"{os.environ['SLURM_STEP_NUM_TASKS']} tasks; the first computes with "
            f"{info.world_size} rank(s), this copy (task {os.environ['SLURM_PROCID']}) is not "
            "needed and ends",
            file=sys.stderr,
            flush=True,
        )
    sys.exit(0)


def follow_launcher(info: RankInfo | None) -> None:
    """End this process soon after its launcher's, even if that was killed.

    SIGTERM ends it, so rank 0 closes its run and keeps what was written.
    """
    if info is None or info.launcher in ("distinf", "environment"):
        return

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_END_SECONDS)  # rank 0 writes what is in flight
        os._exit(143)

    when_parent_ends(os.getppid(), end)


def lets_survivors_live(info: RankInfo, environ: Mapping[str, str]) -> bool:
    """Whether the launcher lets the other ranks go on when one is killed."""
    if info.launcher == "slurm":
        return environ.get("SLURM_KILL_BAD_EXIT", "0") == "0"
    return info.launcher == "openmpi" and environ.get("OMPI_MCA_orte_enable_recovery") == "1"


def default_nproc(environ: Mapping[str, str] | None = None) -> int:
    """Return how many ranks to start on this machine: one per GPU, at least 2; without a GPU 3.

    Raises `ConfigError` in a Slurm job of several tasks or nodes, whose launcher is srun.
    """
    env = os.environ if environ is None else environ
    if "SLURM_JOB_ID" in env and _tasks_of_step(env) == 0 and rank_info(env) is None:
        tasks, nodes = _number(env, "SLURM_NTASKS", 1), _number(env, "SLURM_NNODES", 1)
        if tasks > 1 or nodes > 1:
            raise ConfigError(
                f"Slurm job {env['SLURM_JOB_ID']} has {max(tasks, nodes)} tasks on {nodes} "
                "node(s), but this was started without srun (under sbatch or salloc), as one "
                "process: write `srun python main.py ...`, or set runtime.nproc to start that "
                "many ranks on this machine only"
            )
    if not glob.glob("/dev/nvidia[0-9]*") and not os.path.exists("/dev/dxg"):
        return 3  # importing torch would take a second
    import torch

    return max(2, torch.cuda.device_count()) if torch.cuda.is_available() else 3
