"""The session's one dispatcher, driven over its one transport.

Every `DistributedInference` of a session submits here, so they share the workers. One lock
protects all state; nothing slow happens under it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from distinf.errors import CallTimeout, SessionError, StateLost, TaskError, WorkerLost
from distinf.farm.dispatcher import Decision, Dispatcher, GiveUp, Start
from distinf.farm.lives import Lives
from distinf.farm.outcomes import answers_of, lost, reject, resolve, task_error, why_lost
from distinf.farm.patience import Patience
from distinf.farm.residents import Residents, SetUp
from distinf.report import Event, Events, Status
from distinf.tensors import tensor_bytes
from distinf.transport import Call, Remote, Reply, Transport

T = TypeVar("T")

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
    sent: float = field(default_factory=time.time)

    @property
    def keeper(self) -> int:
        """Rank that keeps its state until the task is done: 0 if it was sent with the call."""
        return self.kept.rank if self.kept is not None else 0

    @property
    def kept(self) -> Remote | None:
        """Its state, if a rank keeps it."""
        state = self.call.args[0] if self.call.args else None
        return state if isinstance(state, Remote) else None


class Farm:
    """Hand tasks to workers and their results to futures.

    The first error of a model breaks the session: running tasks end, nothing new starts, and a
    submitter that waits gets that error. So no error is lost with a future that nobody reads.

    A worker that joins first gets all models that belong on its rank, then tasks. With each time
    that it joins a new life of it begins; answers from an earlier one are ignored.

    ``depth`` and ``max_attempts`` are as of `Dispatcher`. ``call_timeout`` is the deadline of one
    attempt of a task, and of every other call, in seconds; None: as long as its worker lives.
    With ``skip_errors`` the session goes on after a task failed. ``driver_works`` is
    ``runtime.driver_works``: with ``"fallback"`` rank 0 runs tasks none of whose workers is left or
    may join, with ``"idle"`` also those of a submitter that finds no room.

    A task whose state another rank keeps is given up with `StateLost` when that rank is lost.

    Where workers may join, the session breaks after ``wait_for_workers`` seconds (None: never) with
    fewer than ``min_workers`` workers, rank 0 not counted.
    """

    def __init__(
        self,
        transport: Transport,
        depth: int = 2,
        max_attempts: int = 3,
        call_timeout: float | None = None,
        skip_errors: bool = False,
        driver_works: str = "never",
        min_workers: int = 1,
        wait_for_workers: float | None = None,
    ) -> None:
        self._skip_errors = skip_errors
        self._driver_works = driver_works
        self._limits: set[frozenset[int]] = set()  # ranks to which tasks were limited
        self._warned: set[int] = set()  # models with NaN or infinite values
        self.events = Events()
        self.transport = transport
        self._dispatcher = Dispatcher(transport.workers, depth, max_attempts, transport.may_join)
        self._residents = Residents()
        self._call_timeout = call_timeout
        self._tasks: dict[int, _Task] = {}
        self._numbers = itertools.count()
        self._models = itertools.count()
        self._changed = threading.Condition()
        self._broken: BaseException | None = None
        self._at_home = False
        self._depth, self._steps_here = depth, False
        self._lives = Lives(transport.workers)
        self._full = 0  # submitters that wait for a free worker
        self._retried = 0
        # Calls outside the dispatch, and the life of a worker in which each was sent.
        self._calls: dict[Future[Any], tuple[int, Call]] = {}
        # Told outside the lock, since whoever hears of them has locks of its own.
        self._incidents: list[Event] = []
        self._ended: list[tuple[Future[Any], Exception]] = []
        # Ranks that are late with a sign of life; set by who asks them for it.
        self.silent: Callable[[], Mapping[int, float]] = dict
        self._patience = Patience(min_workers, wait_for_workers, self._changed, self._run_out)
        with self._changed:
            self._look()
        transport.watch(self._begin_life, self._leave_out)

    @property
    def workers(self) -> tuple[int, ...]:
        """Ranks of the workers that are there."""
        with self._changed:
            return self._dispatcher.workers

    @property
    def places(self) -> tuple[int, ...]:
        """Ranks of the workers that are there or may join."""
        with self._changed:
            return tuple(sorted({*self._dispatcher.workers, *self.transport.may_join}))

    @property
    def may_diagnose(self) -> tuple[int, ...]:
        """Ranks that got or get tasks, also those that are lost."""
        with self._changed:
            ranks = {*self.transport.workers, *self._dispatcher.workers}
            return tuple(sorted(ranks - self._dispatcher.apart))

    def lives(self) -> dict[int, int]:
        """Return the ranks but 0 that must give signs of life, and which of its lives each has."""
        with self._changed:
            return {rank: life for rank, life in self._lives.all().items() if rank != 0}

    def status(self) -> Status:
        """Return what the workers do now."""
        silent = self.silent()
        with self._changed:
            busy, queued = self._dispatcher.load()
            return Status(
                workers=len(self._dispatcher.workers),
                busy=busy,
                queued=queued,
                full=self._full > 0,
                lost=tuple(sorted(self._lives.lost)),
                losses=self._lives.losses,
                silent=silent,
                retried=self._retried,
                waiting=self._patience.waiting,
            )

    def on(self, rank: int) -> int:
        """Return how many tasks are on a worker."""
        with self._changed:
            return len(self._dispatcher.on(rank))

    def set_apart(self, rank: int) -> None:
        """Give a worker no more tasks, wait until it has none, and delete its models."""
        with self._changed:
            decisions = self._dispatcher.set_apart(rank)
        self._carry_out(decisions)
        with self._changed:
            while self._dispatcher.on(rank) and self._broken is None:
                self._changed.wait(_LOOK_UP_SECONDS)
            models = self._residents.on(rank)
        for model in models:
            self.call(rank, Call(model, "__drop__"), in_time=False)

    def expect_steps(self) -> None:
        """Know that rank 0 also runs other calls, which a diagnostic that hangs there stops."""
        self._steps_here = True

    def has_room_at_home(self, rank: int) -> bool:
        """Whether a rank that runs the tasks of its own states should be given more."""
        with self._changed:
            return not self._at_home or len(self._dispatcher.on(rank)) < self._depth

    def stay_at_home(self) -> None:
        """From now on, run each task on the rank that keeps its state, also on rank 0.

        `submit` then does not wait; `has_room_at_home` says for which rank tasks are wanted.
        """
        with self._changed:
            self._at_home = True
            self._dispatcher.take_any()
            if self._lives.now(0) is None:  # else it has taken the place of lost workers
                self._lives.begin(0)
            decisions = self._dispatcher.join(0)
            self._look()
        self._carry_out(decisions)

    def holders(self, ranks: frozenset[int] | None) -> list[int]:
        """Return which of ``ranks`` (None: all) are there; waits while none is, but may join."""
        return self._wait_for(lambda: self._there(ranks), ranks)

    def _wait_for(self, look: Callable[[], T], ranks: frozenset[int] | None) -> T:
        """Wait until this is true, as long as one of the ranks is there or may join."""
        with self._changed:
            while not (found := look()):
                if self._broken is not None and self.transport.may_join:
                    raise self._broken
                if not self._dispatcher.can_ever_run(ranks):
                    break
                self._changed.wait(_LOOK_UP_SECONDS)
            return found

    def _there(self, ranks: frozenset[int] | None) -> list[int]:
        return [rank for rank in self._dispatcher.workers if ranks is None or rank in ranks]

    def new_model(self) -> int:
        """Return a number for one more resident model."""
        return next(self._models)

    def set_up(
        self, model: int, make: Callable[[int], Call], ranks: frozenset[int] | None
    ) -> list[Any]:
        """Make a call of a model on all its ranks, and on each that joins later before its tasks.

        ``make`` returns it for a rank; a model's first one constructs it on ``ranks`` (None: all).
        Returns the answers of the workers that are there. If none is there but one may join, waits
        for the answer of the first that joins. Raises `TaskError` if the model raised.
        """
        set_up = SetUp(make)
        with self._changed:
            self._residents.add(model, set_up, ranks)
            there = self._there(ranks)
        futures = {self.call(rank, make(rank)): rank for rank in there}
        answers = answers_of(futures, self.transport.may_join)
        if not answers and self._wait_for(set_up.first.done, ranks):
            return [set_up.first.result()]
        return answers

    def forget(self, model: int) -> None:
        """Construct a model on no worker that joins from here on."""
        with self._changed:
            self._residents.drop(model)

    def submit(self, call: Call, nbytes: int, workers: frozenset[int] | None) -> Future[Any]:
        """Run a task on the next free one of ``workers`` (None: all); blocks while all are full.

        After :meth:`stay_at_home` it runs where its state is.

        ``nbytes`` is the size of its tensors, which belong to it. The future raises `TaskError` if
        the model raised, `TaskLost` or `SessionError` if no worker could finish it, and `StateLost`
        if the rank that keeps its state was lost. Raises `SessionError` if the session is broken or
        closed, or none of the workers is left.
        """
        future: Future[Any] = Future()
        task = _Task(call, future, nbytes)
        helped: list[Decision] = []
        with self._changed:
            if self._at_home and task.kept is not None:
                task.nbytes, workers = 0, frozenset({task.keeper})  # no tensor travels
            elif workers is not None and self._driver_works != "never":
                if workers not in self._limits:  # each loss looks at those that are known
                    self._limits.add(workers)
                    helped = self._help({*self._dispatcher.workers, *self._dispatcher.may_join})
                workers |= {0}  # which joins when it has to
        self._carry_out(helped)
        with self._changed:
            while not (room := self._dispatcher.has_room(workers)) and self._has_state(task):
                self._check(workers)
                if self._driver_works == "idle" and not self._at_home:
                    break
                with self._waiting_for_room():
                    self._changed.wait(_LOOK_UP_SECONDS)
            if not self._has_state(task):
                return self._without_state(task)
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

    @contextmanager
    def _waiting_for_room(self) -> Iterator[None]:
        self._full += 1
        try:
            yield
        finally:
            self._full -= 1

    def _has_state(self, task: _Task) -> bool:
        return task.keeper == 0 or self._lives.now(task.keeper) is not None

    def _without_state(self, task: _Task) -> Future[Any]:
        """Give up a task whose state was lost; return its future."""
        reject(task.future, StateLost(f"{task.call.task} was lost with rank {task.keeper}"))
        return task.future

    def call(self, rank: int, call: Call, in_time: bool = True) -> Future[Any]:
        """Call a method of a resident model on one rank, outside the dispatch.

        ``in_time``: within the deadline of a call, else as long as the rank lives.
        """
        with self._changed:
            if in_time:
                self._check(None)
            elif self._broken is not None:
                raise self._broken
        return self._call(rank, call, self._call_timeout if in_time else None)

    def _call(self, rank: int, call: Call, timeout: float | None) -> Future[Any]:
        future: Future[Any] = Future()
        with self._changed:
            life = self._lives.now(rank)
            if life is not None and rank != 0:  # whose own calls go on after a missed deadline
                self._calls[future] = life, call

        def deliver(answer: Future[Reply]) -> None:
            with self._changed:
                self._calls.pop(future, None)
            if life is not None and (why := why_lost(rank, answer)):
                self.mark_lost(rank, why, life)
            error = answer.exception()
            if isinstance(error, CallTimeout):
                reject(future, CallTimeout(f"{error} (runtime.call_timeout)"))
            elif error is not None:
                reject(future, error)
            elif (reply := answer.result()).failure is not None:
                reject(future, task_error(reply, call, attempt=1))
            else:
                resolve(future, reply.value)

        self.transport.send(rank, call, timeout).add_done_callback(deliver)
        return future

    def mark_lost(
        self,
        rank: int,
        reason: str,
        life: int | None = None,
        last: Reply | None = None,
        number: int | None = None,
    ) -> None:
        """Mark a worker as lost and give its tasks to the others; ``life``: only in that one.

        ``last`` is the error of a model by which it is lost: of the task ``number`` (None: the one
        that it computes), which gets the error and is not tried again.
        """
        with self._changed:
            now = self._lives.now(rank)
            if now is None or life not in (None, now):
                return
            on = self._dispatcher.on(rank) if last is not None else ()
            ended = next((task for task in on if number in (None, task)), None)
            failed = None if ended is None else self._tasks.pop(ended, None)
            if failed is not None and last is not None and not self._skip_errors:
                # Before anybody sees that no worker is left.
                self._broken = self._broken or task_error(last, failed.call, failed.attempt)
            decisions = self._end_life(rank, reason, last, ended)
        self.transport.mark_lost(rank)
        if failed is not None and last is not None:
            self._settle(failed, last)
        self._carry_out(decisions)

    def _end_life(
        self, rank: int, reason: str, last: Reply | None = None, ended: int | None = None
    ) -> list[Decision]:
        for number in self._dispatcher.on(rank):
            if number in self._tasks:  # unless the session broke
                self._tasks[number].why = reason
        left = [worker for worker in self._dispatcher.workers if worker != rank]
        decisions: list[Decision] = []
        if rank in self._dispatcher.workers and self._broken is None:
            log.warning("rank %d was lost, %d worker(s) left: %s", rank, len(left), reason)
            decisions += self._help({*left, *self._dispatcher.may_join})
        elif rank in self._dispatcher.apart and self._broken is None:
            log.warning("rank %d was lost, others continue its forecasts: %s", rank, reason)
        why = reason.removeprefix(f"rank {rank} was lost: ")
        own = last if rank not in self._dispatcher.workers else None
        life = self._lives.end(rank, is_loss=self._broken is None)
        for future in [future for future, (sent, _) in self._calls.items() if sent == life]:
            _, call = self._calls.pop(future)
            error = WorkerLost(rank, why) if own is None else task_error(own, call, attempt=1)
            self._ended.append((future, error))
        if self._broken is None:
            now = time.time()
            self._incidents.append(Event("lost", why, rank, now, now))
        decisions += self._dispatcher.mark_lost(rank, ended)
        self._look()
        return decisions

    def _help(self, left: set[int]) -> list[Decision]:
        """Let rank 0 work if some tasks could run on none of these workers."""
        without = not left or any(limit.isdisjoint(left) for limit in self._limits)
        if not without or self._driver_works == "never" or 0 in self._dispatcher.workers:
            return []
        log.warning("rank 0 runs diagnostics from here on")
        self._lives.begin(0)
        return self._dispatcher.join(0)

    def _begin_life(self, rank: int) -> None:
        """Give a worker that holds no models what it needs, then tasks."""
        with self._changed:
            # The transport may know before a call fails that the one before it is gone.
            gone = self._lives.now(rank) is not None
            decisions = self._end_life(rank, "another process took its place") if gone else []
            if (life := self._lives.begin(rank)) is None:
                return
            self._residents.begin(rank)
        self._carry_out(decisions)
        self._prepare(rank, life)

    def _prepare(self, rank: int, life: int) -> None:
        """Send a joining worker the next call that it needs; if there is none, it gets tasks."""
        with self._changed:
            if self._broken is not None or self._lives.now(rank) != life:
                return
            set_up, decisions = self._residents.next_for(rank), []
            if set_up is None:
                decisions = self._dispatcher.join(rank)
                self._lives.has_models(rank)
                log.info("rank %d joined, workers now: %d", rank, len(self._dispatcher.workers))
                self._look()
        if set_up is None:
            self._carry_out(decisions)
        else:
            answer = self._call(rank, set_up.make(rank), self._call_timeout)
            answer.add_done_callback(lambda done: self._go_on(rank, life, set_up, done))

    def _go_on(self, rank: int, life: int, set_up: SetUp, answer: Future[Any]) -> None:
        """Prepare a worker further after a call; leave it out if that failed and it is not lost.

        A worker that is lost by an error of its model would only be lost again.
        """
        error = answer.exception()
        decisions: list[Decision] = []
        with self._changed:
            now = self._lives.now(rank)
            if now != life and (now is not None or not isinstance(error, TaskError)):
                return
            if error is None:
                resolve(set_up.first, answer.result())
            else:
                reject(set_up.first, error)
                log.warning("rank %d is left out: %s", rank, error)
                self._lives.leave_out(rank)
                decisions = self._stop_waiting(rank)
            self._look()
        self._carry_out(decisions)
        self._prepare(rank, life)

    def _leave_out(self, rank: int) -> None:
        """Expect no more of a rank that does not come any more."""
        with self._changed:
            there = self._lives.now(rank) is not None
            decisions = self._end_life(rank, "it does not come back") if there else []
            decisions += self._stop_waiting(rank)
            self._look()
        self._carry_out(decisions)

    def _stop_waiting(self, rank: int) -> list[Decision]:
        left = {*self._dispatcher.workers, *self._dispatcher.may_join} - {rank}
        return self._help(left) + self._dispatcher.stop_waiting(rank)

    def _look(self) -> None:
        """Let the patience know of the workers, and whoever waits that something changed."""
        there = sum(rank != 0 for rank in self._dispatcher.workers)
        self._patience.look(there, bool(self._dispatcher.may_join))
        self._changed.notify_all()

    def fail(self, error: BaseException, abandon: bool = True) -> None:
        """Break the session: every waiting and every further submitter gets the first error.

        With ``abandon`` the futures of running tasks get it, too; else these tasks end. Nobody
        joins any more.
        """
        with self._changed:
            self._broken = self._broken or error
            given_up = [decision.task for decision in self._dispatcher.stop_waiting()]
            numbers = list(self._tasks) if abandon else given_up
            tasks = [self._tasks.pop(number) for number in numbers if number in self._tasks]
            self._look()
        for task in tasks:
            reject(task.future, error)

    def _run_out(self, error: SessionError) -> None:
        self.fail(error, abandon=False)

    def finish(self) -> None:
        """Wait for the tasks that are on workers: each ends, or its worker is lost."""
        with self._changed:
            while self._dispatcher.load()[0]:
                self._changed.wait(_LOOK_UP_SECONDS)

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
        with self._changed:
            incidents, self._incidents = self._incidents, []
            ended, self._ended = self._ended, []
        for future, error in ended:
            reject(future, error)
        for incident in incidents:
            self.events.record(incident)
        for decision in decisions:
            with self._changed:
                task = self._tasks.get(decision.task)
                if isinstance(decision, GiveUp):
                    self._tasks.pop(decision.task, None)
                elif decision.task not in self._dispatcher.on(decision.worker):
                    continue  # lost in between, so the task is elsewhere
                else:
                    life = self._lives[decision.worker]
            if task is None:  # the session broke in between
                continue
            if not isinstance(decision, GiveUp):
                self._send(decision, life, task)
            elif not self._has_state(task):
                self._without_state(task)
            else:
                reject(
                    task.future,
                    lost(task.call.task, task.attempt, task.why, decision.no_workers),
                )

    def _send(self, start: Start, life: int, task: _Task) -> None:
        task.attempt = start.attempt
        if start.attempt > 1:
            with self._changed:
                self._retried += 1
        answer = self.transport.send(start.worker, task.call, self._call_timeout)
        answer.add_done_callback(lambda done: self._deliver(start, life, task, done))

    def _deliver(self, start: Start, life: int, task: _Task, answer: Future[Reply]) -> None:
        rank = start.worker
        if why := why_lost(rank, answer):
            if rank == 0 and self._steps_here:  # they wait for this call, too
                self.fail(CallTimeout(f"{why} (runtime.call_timeout)"))
            told = answer.exception() is None and answer.result().unusable == "group"
            self.mark_lost(rank, why, life, answer.result() if told else None, start.task)
            return
        error = answer.exception()
        with self._changed:
            current = self._lives.now(rank) == life and start.task in self._dispatcher.on(rank)
            decisions = self._dispatcher.finish(start.task, rank) if current else []
            if current:
                self._tasks.pop(start.task, None)
            self._changed.notify_all()
        self._carry_out(decisions)
        if not current:
            return
        if error is not None:
            reject(task.future, error)
            return
        self._settle(task, answer.result())

    def _settle(self, task: _Task, reply: Reply) -> None:
        """Give a task's future the value or the error of its reply."""
        if reply.failure is None:
            if reply.nonfinite:
                self._warn_nonfinite(task.call, reply)
            times, sent_back = (reply.started, reply.ended), tensor_bytes(reply.value)
            if reply.reading is not None:
                self.events.record(Event("read", task.call.task, reply.rank, *reply.reading))
            sizes = task.nbytes, sent_back
            event = Event("diagnose", task.call.task, reply.rank, *times, *sizes, task.attempt)
            self.events.record(replace(event, sent=task.sent, memory=reply.memory))
            resolve(task.future, reply.value)
        elif reply.failure.kind == StateLost.__name__:
            self.mark_lost(task.keeper, f"{reply.failure.message} (to rank {reply.rank})")
            self._without_state(task)
        else:
            failure = task_error(reply, task.call, task.attempt)
            # The run cannot go on after an error that left this process's own GPU unusable.
            if not self._skip_errors or reply.unusable == "GPU":
                self.fail(failure, abandon=False)
            reject(task.future, failure)

    def _run_on_driver(self, number: int, task: _Task) -> None:
        try:
            with self._changed:
                self._full += 1
            reply = self.transport.send(0, task.call, self._call_timeout).result()
        except CallTimeout as error:
            late = CallTimeout(f"{error} (runtime.call_timeout)")
            self.fail(late)
            raise late from None
        finally:
            with self._changed:
                self._full -= 1
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
