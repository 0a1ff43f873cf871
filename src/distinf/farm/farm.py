"""The session's one dispatcher, driven over its one transport.

Every `DistributedInference` of a session submits here, so they share the workers. One lock
protects all state; nothing slow happens under it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any

from distinf.errors import CallTimeout, SessionError, TaskError, TaskLost, WorkerLost
from distinf.farm.dispatcher import Decision, Dispatcher, GiveUp, Start
from distinf.report import Event, Events
from distinf.tensors import tensor_bytes
from distinf.transport import Call, Reply, Transport

log = logging.getLogger("distinf")

# A waiting submitter checks this often, so that a missed notification cannot block it forever.
_LOOK_UP_SECONDS = 5.0


@dataclass
class _Task:
    call: Call
    future: Future[Any]
    nbytes: int
    attempt: int = 1
    why: str = ""  # its worker was lost


class Farm:
    """Hand tasks to workers and their results to futures.

    The first error of a model breaks the session: running tasks end, nothing new starts, and a
    submitter that waits gets that error. So no error is lost with a future that nobody reads.

    ``depth`` and ``max_attempts`` are as of `Dispatcher`. ``call_timeout`` is the deadline of one
    attempt of a task, and of every other call, in seconds; None: as long as its worker lives.
    With ``skip_errors`` the session goes on after a task failed. ``driver_works`` is
    ``runtime.driver_works``: with ``"fallback"`` rank 0 runs tasks none of whose workers is left,
    with ``"idle"`` also those of a submitter that finds no room.
    """

    def __init__(
        self,
        transport: Transport,
        depth: int = 2,
        max_attempts: int = 3,
        call_timeout: float | None = None,
        skip_errors: bool = False,
        driver_works: str = "never",
    ) -> None:
        self._skip_errors = skip_errors
        self._driver_works = driver_works
        self._limits: set[frozenset[int]] = set()  # ranks to which tasks were limited
        self._warned: set[int] = set()  # models with NaN or infinite values
        self.events = Events()
        self.transport = transport
        self._dispatcher = Dispatcher(transport.workers, depth, max_attempts)
        self._call_timeout = call_timeout
        self._tasks: dict[int, _Task] = {}
        self._numbers = itertools.count()
        self._models = itertools.count()
        self._changed = threading.Condition()
        self._broken: BaseException | None = None

    @property
    def workers(self) -> tuple[int, ...]:
        """Ranks of the workers that are left."""
        with self._changed:
            return self._dispatcher.workers

    def busy(self) -> tuple[int, int]:
        """How many workers have a task, and how many there are."""
        with self._changed:
            workers = self._dispatcher.workers
            return sum(bool(self._dispatcher.on(rank)) for rank in workers), len(workers)

    def new_model(self) -> int:
        """Return a number for one more resident model."""
        return next(self._models)

    def submit(self, call: Call, nbytes: int, workers: frozenset[int] | None) -> Future[Any]:
        """Run a task on the next free one of ``workers`` (None: all); blocks while all are full.

        ``nbytes`` is the size of its tensors, which belong to it. The future raises `TaskError` if
        the model raised, `TaskLost` or `SessionError` if no worker could finish it. Raises
        `SessionError` if the session is broken or closed, or none of the workers is left.
        """
        future: Future[Any] = Future()
        task = _Task(call, future, nbytes)
        with self._changed:
            if workers is not None and self._driver_works != "never":
                self._limits.add(workers)
                workers |= {0}  # which joins when it has to
            while not (room := self._dispatcher.has_room(workers)):
                self._check(workers)
                if self._driver_works == "idle":
                    break
                self._changed.wait(_LOOK_UP_SECONDS)
            self._check(workers)
            number = next(self._numbers)
            self._tasks[number] = task
            if room:
                start = self._dispatcher.submit(number, workers)
        if room:
            self._carry_out([start])
        else:  # the prognostic would wait, so its process can compute
            self._run_on_driver(number, task)
        return future

    def call(self, rank: int, call: Call) -> Future[Any]:
        """Call a method of a resident model on one rank, outside the dispatch."""
        with self._changed:
            self._check(None)
        future: Future[Any] = Future()

        def deliver(answer: Future[Reply]) -> None:
            if why := _why_lost(rank, answer):
                self.mark_lost(rank, why)
            error = answer.exception()
            if isinstance(error, CallTimeout):
                error = CallTimeout(f"{error} (runtime.call_timeout)")
            if error is not None:
                _fail(future, error)
                return
            reply = answer.result()
            if reply.failure is None:
                _resolve(future, reply.value)
            else:
                _fail(future, _task_error(reply, call, attempt=1))

        self.transport.send(rank, call, self._call_timeout).add_done_callback(deliver)
        return future

    def mark_lost(self, rank: int, reason: str) -> None:
        """Mark a worker as lost and give its tasks to the others."""
        with self._changed:
            for number in self._dispatcher.on(rank):
                if number in self._tasks:  # unless the session broke
                    self._tasks[number].why = reason
            workers = self._dispatcher.workers
            left = [worker for worker in workers if worker != rank]
            decisions: list[Decision] = []
            if rank in workers:
                log.warning("rank %d was lost, %d worker(s) left: %s", rank, len(left), reason)
                if 0 not in workers and self._needs_driver(left):
                    log.warning("rank 0 runs diagnostics from here on")
                    decisions += self._dispatcher.join(0)
            decisions += self._dispatcher.mark_lost(rank)
            self._changed.notify_all()
        self.transport.mark_lost(rank)
        self._carry_out(decisions)

    def _needs_driver(self, left: list[int]) -> bool:
        """Whether some tasks could run on none of the workers that are left."""
        without = not left or any(limit.isdisjoint(left) for limit in self._limits)
        return without and self._driver_works != "never"

    def fail(self, error: BaseException, abandon: bool = True) -> None:
        """Break the session: every waiting and every further submitter gets the first error.

        With ``abandon`` the futures of running tasks get it, too; else these tasks end.
        """
        with self._changed:
            self._broken = self._broken or error
            tasks: list[_Task] = []
            if abandon:
                tasks, self._tasks = list(self._tasks.values()), {}
            self._changed.notify_all()
        for task in tasks:
            _fail(task.future, error)

    def check(self) -> None:
        """Raise the error that broke the session, if one did."""
        with self._changed:
            self._check(None)

    def _check(self, workers: frozenset[int] | None) -> None:
        if self._broken is not None:
            raise self._broken
        if not self._dispatcher.can_ever_run(workers):
            raise SessionError("no worker is left to run this task")

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            with self._changed:
                task = self._tasks.get(decision.task)
                if isinstance(decision, GiveUp):
                    self._tasks.pop(decision.task, None)
            if task is None:  # the session broke in between
                continue
            if isinstance(decision, GiveUp):
                _fail(task.future, _lost(task, decision))
            else:
                self._send(decision, task)

    def _send(self, start: Start, task: _Task) -> None:
        task.attempt = start.attempt
        answer = self.transport.send(start.worker, task.call, self._call_timeout)
        answer.add_done_callback(lambda done: self._deliver(start, task, done))

    def _deliver(self, start: Start, task: _Task, answer: Future[Reply]) -> None:
        if why := _why_lost(start.worker, answer):
            self.mark_lost(start.worker, why)
            return
        error = answer.exception()
        with self._changed:
            current = start.task in self._dispatcher.on(start.worker)
            decisions = self._dispatcher.finish(start.task, start.worker)
            if current:
                self._tasks.pop(start.task, None)
            self._changed.notify_all()
        self._carry_out(decisions)
        if not current:
            return
        if error is not None:
            _fail(task.future, error)
            return
        self._settle(task, answer.result())

    def _settle(self, task: _Task, reply: Reply) -> None:
        """Give a task's future the value or the error of its reply."""
        if reply.failure is None:
            if reply.nonfinite:
                self._warn_nonfinite(task.call, reply)
            times, sent_back = (reply.started, reply.ended), tensor_bytes(reply.value)
            self.events.record(
                Event("diagnose", task.call.task, reply.rank, *times, task.nbytes, sent_back)
            )
            _resolve(task.future, reply.value)
        else:
            failure = _task_error(reply, task.call, task.attempt)
            # The run cannot go on after an error that left this process's own GPU unusable.
            if not self._skip_errors or reply.unusable:
                self.fail(failure, abandon=False)
            _fail(task.future, failure)

    def _run_on_driver(self, number: int, task: _Task) -> None:
        try:
            reply = self.transport.send(0, task.call, self._call_timeout).result()
        except CallTimeout as error:
            late = CallTimeout(f"{error} (runtime.call_timeout)")
            self.fail(late)
            raise late from None
        with self._changed:
            self._tasks.pop(number, None)
        self._settle(task, reply)

    def _warn_nonfinite(self, call: Call, reply: Reply) -> None:
        with self._changed:
            first = call.model not in self._warned
            self._warned.add(call.model)
        if first:
            log.warning(
                "%s: %d values of the result are NaN or infinite (rank %d); this warning is shown "
                "once per diagnostic (runtime.nonfinite, diagnostic.<name>.nonfinite)",
                call.task,
                reply.nonfinite,
                reply.rank,
            )


def _lost(task: _Task, decision: GiveUp) -> Exception:
    """Return the error of a task that was lost with its worker and is not tried again."""
    reason = "no worker is left" if decision.no_workers else "it will not be tried again"
    kind = SessionError if decision.no_workers else TaskLost
    return kind(
        f"{task.call.task} was lost with its worker on attempt {task.attempt}, and {reason}: "
        f"{task.why}"
    )


def _why_lost(rank: int, answer: Future[Reply]) -> str:
    """Say why the worker that gave an answer is lost; empty if it is not."""
    error = answer.exception()
    # A worker that missed its deadline may answer late or never: it gets no more tasks.
    if isinstance(error, WorkerLost | CallTimeout):
        return str(error)
    if error is not None or rank == 0 or not answer.result().unusable:
        return ""
    failure = answer.result().failure
    assert failure is not None
    return f"its GPU can no longer be used: {failure.kind}: {failure.message}"


def _task_error(reply: Reply, call: Call, attempt: int) -> TaskError:
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


def _resolve(future: Future[Any], value: Any) -> None:
    """Give a future its value, unless it was cancelled or failed with the session."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(value)


def _fail(future: Future[Any], error: BaseException) -> None:
    """Give a future its error; as :func:`_resolve`."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
