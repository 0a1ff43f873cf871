"""What becomes of a task's future: a value, or an error that says whose it is."""

from __future__ import annotations

import contextlib
import logging
import threading
from concurrent.futures import Future, InvalidStateError
from typing import Any

from distinf.errors import SessionError, TaskError, TaskLost
from distinf.farm.dispatcher import GiveUp
from distinf.transport import Call, Reply

__all__ = ["Nonfinite", "fail", "lost", "resolve", "task_error", "why_unusable"]

log = logging.getLogger("distinf")


class Nonfinite:
    """Warns of NaN and infinite values, once for each diagnostic."""

    def __init__(self) -> None:
        self._told: set[int] = set()
        self._lock = threading.Lock()

    def tell(self, call: Call, reply: Reply) -> None:
        """Warn of those in a reply."""
        with self._lock:
            first = call.model not in self._told
            self._told.add(call.model)
        if first:
            log.warning(
                "%s: %d values of the result are NaN or infinite (rank %d); further results of "
                "this diagnostic are not told of (runtime.nonfinite, diagnostic.<name>.nonfinite)",
                call.task,
                reply.nonfinite,
                reply.rank,
            )


def lost(call: Call, attempt: int, why: str, decision: GiveUp) -> Exception:
    """Return the error of a task that was lost with its worker and is not tried again."""
    reason = "no worker is left" if decision.no_workers else "it will not be tried again"
    kind = SessionError if decision.no_workers else TaskLost
    return kind(f"{call.task} was lost with its worker on attempt {attempt}, and {reason}: {why}")


def why_unusable(reply: Reply) -> str:
    """Say why a worker leaves whose GPU fails every further call."""
    assert reply.failure is not None
    return f"its GPU can no longer be used: {reply.failure.kind}: {reply.failure.message}"


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
    """Give a future its value, unless it is done already: cancelled, or failed with the session."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(value)


def fail(future: Future[Any], error: BaseException) -> None:
    """Give a future its error; as :func:`resolve`."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
