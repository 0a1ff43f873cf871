"""The errors that distinf raises."""

from __future__ import annotations

from collections.abc import Sequence


class DistinfError(Exception):
    """Base class of every error that distinf raises on purpose."""


class ConfigError(DistinfError, ValueError):
    """A setting, an input file or a combination of models that cannot work."""


class StoreError(DistinfError):
    """The output store cannot be created, resumed or written."""


class SessionError(DistinfError, RuntimeError):
    """The ranks did not find each other, or the session is closed or broken."""


class NoDriver(SessionError):
    """Rank 0 never arrived, so every other rank reports it."""


class Interrupted(KeyboardInterrupt):
    """The run was ended by a signal; as with Ctrl-C, an ``except Exception`` does not catch it."""


class WorkerLost(SessionError):
    """A worker's process ended or no longer answers.

    Parameters
    ----------
    rank : int
        The rank that was lost.
    reason : str
        What is known about it, in words.
    """

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"rank {rank} was lost: {reason}")
        self.rank = rank
        self.reason = reason


class TaskLost(SessionError):
    """``runtime.max_attempts`` workers were lost while they computed one task."""


class StateLost(SessionError):
    """The rank that forecast a task's state was lost with it; the state is forecast again."""


class CallTimeout(SessionError):
    """A call did not answer within its deadline."""


class TaskError(DistinfError, RuntimeError):
    """A model raised on the rank that ran it.

    The message names the call, the task, the rank, the host and the attempt; the traceback
    of the remote process is kept in ``remote_traceback`` and shown below the local one.

    Parameters
    ----------
    what : str
        The call that failed, such as ``"WindDecomposition.forward"``.
    task : str
        The task, as (diagnostic, time, lead_time) or as its running number.
    rank, host : int, str
        Where it ran.
    attempt : int
        1 for the first attempt.
    kind, message : str
        Class name and text of the original exception.
    remote_traceback : str
        The formatted traceback of the remote process.
    """

    def __init__(
        self,
        *,
        what: str,
        task: str,
        rank: int,
        host: str,
        attempt: int,
        kind: str,
        message: str,
        remote_traceback: str,
    ) -> None:
        where = f"on rank {rank} ({host}), attempt {attempt}"
        memory = "the GPU's memory is full: " if kind == "OutOfMemoryError" else ""
        super().__init__(f"{what} failed for {task} {where}: {memory}{kind}: {message}")
        self.what = what
        self.task = task
        self.rank = rank
        self.host = host
        self.attempt = attempt
        self.kind = kind
        self.remote_message = message
        self.remote_traceback = remote_traceback
        self.add_note(f"Traceback on rank {rank} ({host}):\n{remote_traceback.rstrip()}")


class TasksSkipped(DistinfError):
    """The run ended, but some tasks failed and are not in the store.

    ``tasks`` names each of them, and why it failed.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        shown = [f"  {task}" for task in tasks[:20]]
        more = [f"  and {len(tasks) - 20} more"] if len(tasks) > 20 else []
        super().__init__(
            "\n".join([f"{len(tasks)} task(s) failed and are empty in the store:", *shown, *more])
        )
        self.tasks = list(tasks)


def as_config_error(error: TaskError, prefix: str = "") -> DistinfError:
    """Return the `ConfigError` that a model raised on its rank; any other error as it is."""
    if error.kind != ConfigError.__name__:
        return error
    return ConfigError(f"{prefix}{error.remote_message}")
