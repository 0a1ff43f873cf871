"""How calls end: values and errors of their futures."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, InvalidStateError, wait
from typing import Any

from distinf.errors import CallTimeout, SessionError, TaskError, TaskLost, WorkerLost
from distinf.transport import Call, Reply


def answers_of(ranks: Mapping[Future[Any], int], may_join: Collection[int]) -> list[Any]:
    """Wait for calls to these ranks; return their values, raise their first error.

    The loss of a worker that may join again is no error.
    """
    pending = set(ranks)
    while pending:
        done, pending = wait(pending, return_when=FIRST_EXCEPTION)
        for future in done:
            if ranks[future] not in may_join or not isinstance(future.exception(), WorkerLost):
                future.result()
    return [future.result() for future in ranks if future.exception() is None]


def lost(task: str, attempt: int, why: str, no_workers: bool) -> Exception:
    """Return the error of a task that was lost with its worker and is not tried again."""
    reason = "no worker is left" if no_workers else "it will not be tried again"
    kind = SessionError if no_workers else TaskLost
    return kind(f"{task} was lost with its worker on attempt {attempt}, and {reason}: {why}")


def why_lost(rank: int, answer: Future[Reply]) -> str:
    """Say why the worker that gave an answer is lost; empty if it is not."""
    error = answer.exception()
    # A worker that missed its deadline may answer late or never: it gets no more tasks.
    if isinstance(error, WorkerLost | CallTimeout):
        return str(error)
    if error is not None or rank == 0 or not answer.result().unusable:
        return ""
    failure = answer.result().failure
    assert failure is not None
    unusable = answer.result().unusable
    return f"its {unusable} can no longer be used: {failure.kind}: {failure.message}"


def task_error(reply: Reply, call: Call, attempt: int) -> TaskError:
    """Return the error that a model raised in a task."""
    failure = reply.failure
    assert failure is not None
    return TaskError(
        what=failure.what,
        task=call.task or f"model {call.model}",
        rank=reply.rank,
        host=reply.host,
        attempt=attempt,
        kind=failure.kind,
        message=failure.message,
        remote_traceback=failure.traceback,
    )


def resolve(future: Future[Any], value: Any) -> None:
    """Give a future its value, unless it was cancelled or failed with the session."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(value)


def reject(future: Future[Any], error: BaseException) -> None:
    """Give a future its error; as :func:`resolve`."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
