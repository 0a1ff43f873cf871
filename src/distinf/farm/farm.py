"""The session's one dispatcher, driven over its one transport.

Every `DistributedInference` of a session submits here, so they share the workers. One lock
owns all state; nothing slow happens under it.
"""

from __future__ import annotations

import itertools
import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from distinf.background import in_background
from distinf.errors import CallTimeout, SessionError, WorkerLost
from distinf.farm import outcome
from distinf.farm.dispatcher import Decision, Dispatcher, GiveUp, Start
from distinf.farm.driver import DriverWorks
from distinf.report import Event, Events
from distinf.tensors import tensor_bytes
from distinf.transport import Call, Reply, Transport

__all__ = ["Farm"]

log = logging.getLogger("distinf")

# A waiting submitter looks up this often, so that no lost wake-up can make it wait for ever.
_LOOK_UP_SECONDS = 5.0


@dataclass
class _Task:
    call: Call
    future: Future[Any]
    nbytes: int
    attempt: int = 0
    why: str = field(default="", compare=False)


class Farm:
    """Hand tasks to workers and their results to futures.

    The first error of a model breaks the session: what is in flight comes to its end, nothing
    new starts, and whoever waits to submit wakes with that error, so that no error is lost
    with a future that nobody reads.

    Parameters
    ----------
    transport : Transport
        Carries the calls.
    depth : int, optional
        Tasks that may be on a worker at once, by default 2.
    max_attempts : int, optional
        Workers that one task may outlive, by default 3.
    call_timeout : float | None, optional
        Deadline of one attempt of a task, and of every other call, in seconds, by default None:
        as long as its worker lives.
    skip_errors : bool, optional
        Whether a task that fails leaves the session whole, by default False.
    driver : DriverWorks | None, optional
        Runs calls in the driver's own process, by default None: it runs none.
    """

    def __init__(
        self,
        transport: Transport,
        depth: int = 2,
        max_attempts: int = 3,
        call_timeout: float | None = None,
        skip_errors: bool = False,
        driver: DriverWorks | None = None,
    ) -> None:
        self._skip_errors = skip_errors
        self._driver = driver or DriverWorks(None, "never")
        self._nonfinite = outcome.Nonfinite()
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
        """Queue a task on the next free worker; blocks while all are full.

        Parameters
        ----------
        call : Call
            The task's; its tensors belong to it.
        nbytes : int
            Their size, for the summary.
        workers : frozenset[int] | None
            Ranks that may run it; None: all.

        Returns
        -------
        Future
            Resolves to the call's value; raises `TaskError` when the model raised, or
            `WorkerLost` when no worker could finish it.

        Raises
        ------
        SessionError
            If the session is broken or closed, or none of the workers is left.
        """
        future: Future[Any] = Future()
        task = _Task(call, future, nbytes)
        workers = self._driver.admit(workers)
        with self._changed:
            while not (room := self._dispatcher.has_room(workers)):
                self._check(workers)
                if self._driver.while_idle:
                    break
                self._changed.wait(_LOOK_UP_SECONDS)
            self._check(workers)
            number = next(self._numbers)
            self._tasks[number] = task
            if room:
                start = self._dispatcher.submit(number, workers)
        if room:
            self._carry_out([start])
        else:  # the prognostic would wait: its process may as well compute
            self._run_own(number, task)
        return future

    def call(self, rank: int, call: Call) -> Future[Any]:
        """Call a method of a resident model on one rank, outside the dispatch.

        Returns
        -------
        Future
            Resolves to the value; raises as that of :meth:`submit`.
        """
        with self._changed:
            self._check(None)
        future: Future[Any] = Future()

        def deliver(answer: Future[Reply]) -> None:
            error = answer.exception()
            if isinstance(error, WorkerLost):
                self.mark_lost(rank, error.reason)
            if isinstance(error, CallTimeout):
                self.mark_lost(rank, str(error))
                error = CallTimeout(f"{error} (runtime.call_timeout)")
            if error is not None:
                outcome.fail(future, error)
                return
            reply = answer.result()
            if reply.unusable and rank != 0:
                self.mark_lost(rank, outcome.why_unusable(reply))
            if reply.failure is None:
                outcome.resolve(future, reply.value)
            else:
                outcome.fail(future, outcome.task_error(reply, call, attempt=1))

        if call.method == "__build__":
            self._driver.note_build(call)
        self.transport.send(rank, call, self._call_timeout).add_done_callback(deliver)
        return future

    def mark_lost(self, rank: int, reason: str) -> None:
        """Take note that a worker is gone and give its tasks to the others."""
        with self._changed:
            for number in self._dispatcher.on(rank):
                if number in self._tasks:  # unless the session broke
                    self._tasks[number].why = reason
            left = [worker for worker in self._dispatcher.workers if worker != rank]
            decisions: list[Decision] = []
            if rank in self._dispatcher.workers:
                log.warning("rank %d was lost, %d worker(s) left: %s", rank, len(left), reason)
                if self._driver.needed(left) and 0 not in (rank, *left):
                    log.warning("rank 0 runs diagnostics from here on")
                    decisions += self._dispatcher.join(0)
            decisions += self._dispatcher.lose(rank)
            self._changed.notify_all()
        self.transport.mark_lost(rank)
        self._carry_out(decisions)

    def fail(self, error: BaseException, abandon: bool = True) -> None:
        """Break the session: every waiting and every further submitter gets this error.

        Parameters
        ----------
        error : BaseException
            The first one counts.
        abandon : bool, optional
            Whether open futures get the error too, by default True; False lets what is in
            flight come to its end.
        """
        with self._changed:
            self._broken = self._broken or error
            tasks: list[_Task] = []
            if abandon:
                tasks, self._tasks = list(self._tasks.values()), {}
            self._changed.notify_all()
        for task in tasks:
            outcome.fail(task.future, error)

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
            if task is None:  # the session broke meanwhile
                continue
            if isinstance(decision, GiveUp):
                self._give_up(decision, task)
            else:
                self._send(decision, task)

    def _send(self, start: Start, task: _Task) -> None:
        task.attempt = start.attempt
        if start.worker == 0 and self._driver.able:
            own = in_background(lambda: self._driver.run(task.call), "distinf-driver-works")
            own.add_done_callback(lambda done: self._deliver(start, task, done))
            return
        answer = self.transport.send(start.worker, task.call, self._call_timeout)
        answer.add_done_callback(lambda done: self._deliver(start, task, done))

    def _deliver(self, start: Start, task: _Task, answer: Future[Reply]) -> None:
        error = answer.exception()
        if isinstance(error, WorkerLost | CallTimeout):
            # A worker that missed its deadline may answer late or never: it gets no more tasks.
            self.mark_lost(start.worker, str(error))
            return
        if error is None and answer.result().unusable and start.worker != 0:
            self.mark_lost(start.worker, outcome.why_unusable(answer.result()))
            return
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
            outcome.fail(task.future, error)
            return
        self._settle(task, answer.result(), start.attempt)

    def _settle(self, task: _Task, reply: Reply, attempt: int) -> None:
        """Give a task's future what its reply says."""
        if reply.failure is None:
            if reply.nonfinite:
                self._nonfinite.tell(task.call, reply)
            self.events.record(
                Event(
                    "diagnose",
                    task.call.task,
                    reply.rank,
                    reply.started,
                    reply.ended,
                    task.nbytes,
                    tensor_bytes(reply.value),
                )
            )
            outcome.resolve(task.future, reply.value)
        else:
            failure = outcome.task_error(reply, task.call, attempt)
            # What left this process's own GPU unusable cannot be gone on after.
            if not self._skip_errors or reply.unusable:
                self.fail(failure, abandon=False)
            outcome.fail(task.future, failure)

    def _run_own(self, number: int, task: _Task) -> None:
        try:
            reply = self._driver.run(task.call)
        except CallTimeout as error:
            late = CallTimeout(f"{error} (runtime.call_timeout)")
            self.fail(late)
            raise late from None
        with self._changed:
            self._tasks.pop(number, None)
        self._settle(task, reply, 1)

    def _give_up(self, decision: GiveUp, task: _Task) -> None:
        with self._changed:
            self._tasks.pop(decision.task, None)
            self._changed.notify_all()
        outcome.fail(task.future, outcome.lost(task.call, task.attempt, task.why, decision))
