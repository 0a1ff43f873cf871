"""Which launcher started this process, and where it stands among that launcher's ranks.

Without torch, because every rank asks before anything else.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from distinf.errors import ConfigError
from distinf.session.slurm_variables import expand_hosts, number, tasks_of_step, tasks_per_node

__all__ = [
    "Place",
    "default_nproc",
    "find_place",
    "follow_launcher",
    "leave_if_superfluous",
    "lets_survivors_live",
    "likely_cause",
    "tells_errors",
]

# Where launchers say a rank's number, and the one on its node, which may stand for it.
_OWN = {
    "environment": ("RANK", "LOCAL_RANK", "PMI_RANK"),
    "openmpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_LOCALID", "RANK"),
}
_FOLLOW_SECONDS = 0.5
_END_SECONDS = 20.0

_CAUSES = {
    "torchrun": "another torchrun of this rendezvous failed, or its process ended",
    "openmpi": "that process ended, or ranks do not share a temporary folder or a network; "
    "MASTER_ADDR and MASTER_PORT say where to meet",
    "slurm": "that task ended or hangs before this line (its output tells), or does not reach this "
    "node; MASTER_ADDR and MASTER_PORT say where to meet",
    "environment": "not all ranks were started, or with another MASTER_ADDR or MASTER_PORT",
    "distinf": "that process hangs while it imports",
}


@dataclass(frozen=True)
class Place:
    """Where this process stands among the ranks of its launcher.

    Parameters
    ----------
    launcher : str
        ``"distinf"``, ``"torchrun"``, ``"openmpi"``, ``"slurm"``, ``"environment"`` (RANK and
        WORLD_SIZE were set) or ``"none"``.
    rank, world_size, local_rank, local_world_size : int
        As in torch.distributed.
    job : str, optional
        What only the ranks of this launch have in common, by default nothing is known.
    hosts : tuple[str, ...], optional
        The nodes of this launch, rank 0's first, by default unknown.
    superfluous : bool, optional
        Whether another copy of this launch does the work, by default False.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    job: str = ""
    hosts: tuple[str, ...] = ()
    superfluous: bool = False

    @property
    def on_one_node(self) -> bool:
        """Whether all ranks are on this machine."""
        return self.local_world_size == self.world_size


def find_place(environ: Mapping[str, str] | None = None) -> Place | None:
    """Find out which launcher started this process; the innermost decides.

    Parameters
    ----------
    environ : Mapping[str, str] | None, optional
        The environment, by default that of this process.

    Returns
    -------
    Place | None
        None when no launcher did. A Slurm step of one task counts as none, so that ``python
        main.py`` in an interactive step uses all its GPUs.

    Raises
    ------
    ConfigError
        If the variables contradict one another or some are missing.
    """
    env = os.environ if environ is None else environ
    if "DISTINF_RANKS" in env:
        place: Place | None = _from_environment(env, "distinf")
    elif "TORCHELASTIC_RUN_ID" in env and "RANK" in env:
        place = _from_environment(env, "torchrun")
        _refuse_copies_of_torchrun(env)
    elif "OMPI_COMM_WORLD_RANK" in env:
        place = _from_openmpi(env)
    elif tasks_of_step(env) > 1:
        place = _from_slurm(env)
    elif "RANK" in env or "WORLD_SIZE" in env:
        place = _from_environment(env, "environment")
    else:
        if number(env, "PMI_SIZE", 1) > 1 and "SLURM_JOB_ID" not in env:
            raise ConfigError(
                f"this is process {env.get('PMI_RANK', '?')} of {env['PMI_SIZE']} of an MPI "
                "launcher that distinf does not know: use Open MPI's mpirun, srun or torchrun, or "
                "set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
            )
        return None
    assert place is not None
    return _checked(place)


def tells_errors(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this rank prints an error that ends all ranks, so that it is printed once.

    Rank 0 does. Where the launcher's variables are wrong, so does a rank whose own are: rank 0
    then does not know of it.
    """
    env = dict(os.environ if environ is None else environ)
    try:
        place = find_place(env)
        return place is None or place.rank == 0
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
    # What rank 0 is told, as far as this rank can know.
    env.update((name, "0") for name, text in numbers.items() if text == own)
    if env.get("SLURM_NODEID", "").isdecimal():
        env["SLURM_NODEID"] = "0"
    try:
        find_place(env)
    except ConfigError:
        return False  # rank 0 tells
    return True


def _checked(place: Place) -> Place:
    for name, value, size in (
        ("rank", place.rank, place.world_size),
        ("local rank", place.local_rank, place.local_world_size),
    ):
        if not 0 <= value < size:
            raise ConfigError(
                f"{name} {value} of {size} cannot be (set by {place.launcher}): it counts from 0"
            )
    return place


def _from_environment(env: Mapping[str, str], launcher: str) -> Place:
    """Read torch.distributed's own variables."""
    rank, world_size = number(env, "RANK"), number(env, "WORLD_SIZE")
    if launcher == "environment" and world_size > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env]
        if missing:
            raise ConfigError(
                f"RANK={rank} and WORLD_SIZE={world_size} are set, but not "
                f"{' and '.join(missing)}: without them the ranks cannot find each other"
            )
        # Only on one machine are local ranks the ranks.
        if not env["MASTER_ADDR"].startswith(("localhost", "127.", "::1")):
            number(env, "LOCAL_RANK")
            number(env, "LOCAL_WORLD_SIZE")
    return Place(
        launcher=launcher,
        rank=rank,
        world_size=world_size,
        local_rank=number(env, "LOCAL_RANK", rank),
        local_world_size=number(env, "LOCAL_WORLD_SIZE", world_size),
        job=env.get("TORCHELASTIC_RUN_ID", ""),
    )


def _refuse_copies_of_torchrun(env: Mapping[str, str]) -> None:
    tasks = tasks_of_step(env)
    if tasks > 1 and env.get("GROUP_WORLD_SIZE") == "1":
        raise ConfigError(
            f"srun started {tasks} torchruns that do not know of each other, and each would "
            "compute everything: use `srun --ntasks-per-node=1 torchrun --nnodes=...` with a "
            "rendezvous endpoint, or srun alone"
        )


def _from_openmpi(env: Mapping[str, str]) -> Place:
    rank = number(env, "OMPI_COMM_WORLD_RANK")
    world_size = number(env, "OMPI_COMM_WORLD_SIZE")
    head = env.get("OMPI_MCA_orte_hnp_uri")
    local_size = number(env, "OMPI_COMM_WORLD_LOCAL_SIZE")
    if head is None:
        beside_mpirun = local_size == world_size
    else:
        # mpirun's daemons on further nodes are tasks of a step of their own.
        beside_mpirun = head == env.get("OMPI_MCA_orte_local_daemon_uri", head)
    inside_step = beside_mpirun and tasks_of_step(env) > 1
    return Place(
        launcher="openmpi",
        rank=rank,
        world_size=world_size,
        local_rank=number(env, "OMPI_COMM_WORLD_LOCAL_RANK"),
        local_world_size=local_size,
        job=_digest(
            "openmpi",
            *(
                env.get(name, "")
                # A random number of this mpirun; the number of this launch (its pid is in it).
                for name in ("OMPI_MCA_orte_precondition_transports", "PMIX_NAMESPACE")
            ),
        ),
        hosts=_hosts_of_mpirun(env, head),
        superfluous=inside_step and number(env, "SLURM_PROCID") != 0,
    )


def _hosts_of_mpirun(env: Mapping[str, str], head: str | None) -> tuple[str, ...]:
    """Addresses of the node that mpirun was called on, where its rank 0 runs by default."""
    found = re.findall(r"tcp://([^:;]+):", head or "")
    if found:
        return tuple(found[0].split(","))
    return tuple(expand_hosts(env.get("SLURM_JOB_NODELIST", "")))


def _from_slurm(env: Mapping[str, str]) -> Place:
    counts = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = number(env, "SLURM_NODEID")
    world_size = tasks_of_step(env)
    nodes = number(env, "SLURM_STEP_NUM_NODES", len(counts) or 1)
    if nodes > 1 and node >= len(counts):
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE={env.get('SLURM_STEP_TASKS_PER_NODE')} has no node "
            f"{node}: was this started by srun?"
        )
    return Place(
        launcher="slurm",
        rank=number(env, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=number(env, "SLURM_LOCALID"),
        local_world_size=counts[node] if nodes > 1 else world_size,
        job=_digest(
            "slurm",
            *(
                env.get(name, "")
                for name in ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID")
            ),
            env.get("SLURM_SRUN_COMM_PORT", ""),  # two clusters may number their jobs alike
        ),
        hosts=tuple(expand_hosts(env.get("SLURM_STEP_NODELIST", ""))),
    )


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


def likely_cause(place: Place, environ: Mapping[str, str] | None = None) -> str:
    """Say why ranks may be missing, in a sentence."""
    env = os.environ if environ is None else environ
    cause = _CAUSES.get(place.launcher, "unknown")
    if place.launcher == "environment" and "SLURM_JOB_ID" in env and not tasks_of_step(env):
        cause = (
            "started under sbatch or salloc without srun, so that only one rank exists: write "
            "`srun python ...`, without setting RANK and WORLD_SIZE"
        )
    return f"Likely cause: {cause}"


def leave_if_superfluous(place: Place | None) -> None:
    """End this process, with status 0, if another copy of its mpirun does the work."""
    if place is None or not place.superfluous:
        return
    if place.rank == 0:
        print(
            "distinf: srun started mpirun once for each of its "
            f"{os.environ['SLURM_STEP_NUM_TASKS']} tasks; the first computes with "
            f"{place.world_size} rank(s), this copy (task {os.environ['SLURM_PROCID']}) is not "
            "needed and ends",
            file=sys.stderr,
            flush=True,
        )
    sys.exit(0)


def follow_launcher(place: Place | None) -> None:
    """End this process soon after its launcher's, which may have been killed before it could.

    By SIGTERM, which rank 0 takes for the end of its job: what was written is kept.
    """
    if place is None or place.launcher in ("distinf", "environment"):
        return
    parent = os.getppid()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(_FOLLOW_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_END_SECONDS)  # to write what is in flight
        os._exit(143)

    threading.Thread(target=follow, name="distinf-follow", daemon=True).start()


def lets_survivors_live(place: Place, environ: Mapping[str, str]) -> bool:
    """Whether the launcher lets the other ranks go on when one is killed."""
    if place.launcher == "slurm":
        return environ.get("SLURM_KILL_BAD_EXIT", "0") == "0"
    return place.launcher == "openmpi" and environ.get("OMPI_MCA_orte_enable_recovery") == "1"


def default_nproc(environ: Mapping[str, str] | None = None) -> int:
    """Ranks to start on this machine: one a GPU, at least a driver and a worker.

    Without a GPU three, so that two workers share the diagnostics.

    Raises
    ------
    ConfigError
        In a Slurm job of several tasks or nodes, whose launcher is srun.
    """
    env = os.environ if environ is None else environ
    if "SLURM_JOB_ID" in env and tasks_of_step(env) == 0 and find_place(env) is None:
        tasks, nodes = number(env, "SLURM_NTASKS", 1), number(env, "SLURM_NNODES", 1)
        if tasks > 1 or nodes > 1:
            raise ConfigError(
                f"Slurm job {env['SLURM_JOB_ID']} has {max(tasks, nodes)} tasks on {nodes} "
                "node(s), but this was started without srun (under sbatch or salloc), as one "
                "process: write `srun python main.py ...`, or set runtime.nproc to start that "
                "many ranks on this machine only"
            )
    if not glob.glob("/dev/nvidia[0-9]*") and not os.path.exists("/dev/dxg"):
        return 3  # without the second that importing torch takes
    import torch

    return max(2, torch.cuda.device_count()) if torch.cuda.is_available() else 3
