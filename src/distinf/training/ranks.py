"""One training on all ranks of a session, rank 0 among them."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

from distinf.errors import TaskError, WorkerLost, as_config_error
from distinf.session import current_session
from distinf.training.settings import TrainingRun
from distinf.training.trainer import Trainer
from distinf.transport import Call

# A lost rank is noticed in milliseconds, but the error of its neighbour may be first.
_PATIENCE_SECONDS = 2.0
# What torch raises when a member of a process group is gone.
_OF_THE_GROUP = ("RuntimeError", "DistBackendError", "DistNetworkError")


def train_on_all_ranks(run: TrainingRun) -> dict[str, Any]:
    """Train on every rank of the session, and write the package; on rank 0.

    Parameters
    ----------
    run : TrainingRun
        The training.

    Returns
    -------
    dict[str, Any]
        ``pairs`` and ``held_out``, the numbers of pairs; ``scores``, of each target its root mean
        square errors on the held-out pairs; ``history``, the losses of each epoch; ``seconds``.

    Raises
    ------
    WorkerLost
        If a rank is lost, which ends the training; its checkpoints stay.
    ConfigError
        If the network or the data does not fit, or a checkpoint was made with other settings.
    TaskError
        If a rank raised another error.
    """
    session = current_session()
    farm, ranks = session.farm, range(session.info.world_size)
    model = farm.new_model()
    build = Call(model, "__build__", "the training", (Trainer, run))
    train = Call(model, "train", "the training")
    try:
        for call in (build, train):
            futures = [farm.call(rank, call, in_time=False) for rank in ranks]
            _wait(futures)
    except TaskError as error:
        raise as_config_error(error) from None
    found: dict[str, Any] = futures[0].result()
    return found


def _wait(futures: list[Future[Any]]) -> None:
    """Wait for the calls on all ranks, number by number; raise the error that explains most."""
    wait(futures, return_when=FIRST_EXCEPTION)
    end = time.monotonic() + _PATIENCE_SECONDS
    while (errors := _errors(futures)) and time.monotonic() < end:
        if any(isinstance(error, WorkerLost) for error in errors):
            break
        time.sleep(0.05)
    if errors:
        raise min(errors, key=_order)


def _errors(futures: list[Future[Any]]) -> list[BaseException]:
    found = [future.exception() for future in futures if future.done()]
    return [error for error in found if error is not None]


def _order(error: BaseException) -> int:
    """Sort errors: a lost rank, or one with an error of its own, makes those of the others."""
    consequence = isinstance(error, TaskError) and error.kind in _OF_THE_GROUP
    return 0 if isinstance(error, WorkerLost) else 1 + consequence
