"""Dispatcher: nothing is lost, nothing runs twice at once, it always ends."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from distinf.farm.dispatcher import Dispatcher, GiveUp, Start

RANKS = (1, 2, 3, 4, 5)
RESTRICTIONS = (None, *(frozenset(s) for s in ({1}, {2, 3}, {0, 1, 4}, {3}, {1, 2, 3, 4, 5})))


class Cluster(RuleBasedStateMachine):
    """Workers that join, compute and die in any order, against a plain model of what they do."""

    @initialize(
        count=st.integers(0, len(RANKS)),
        depth=st.integers(1, 3),
        max_attempts=st.integers(1, 3),
        may_join=st.sets(st.sampled_from(RANKS)),
    )
    def begin(self, count, depth, max_attempts, may_join):
        self.depth, self.max_attempts = depth, max_attempts
        self.dispatcher = Dispatcher(RANKS[:count], depth, max_attempts, may_join)
        self.may_join = may_join
        self.on = {rank: [] for rank in RANKS[:count]}
        self.lost = {}  # rank: tasks that were on it
        self.allowed = {}  # task: restriction, in order of submission
        self.losses = {}
        self.waiting = []
        self.ended = {}  # task: "finished" | "given up"
        self.apart = set()

    def ranks_of(self, task):
        allowed = self.allowed[task]
        return [r for r in self.on if r not in self.apart and (allowed is None or r in allowed)]

    def is_hopeless(self, task):
        allowed = self.allowed[task]
        known = {*(self.on.keys() - self.apart), *self.may_join}
        return not any(allowed is None or rank in allowed for rank in known)

    def free_for(self, task):
        return [rank for rank in self.ranks_of(task) if len(self.on[rank]) < self.depth]

    def apply(self, decisions):
        for decision in decisions:
            task = decision.task
            assert task in self.waiting
            if isinstance(decision, Start):
                older = [t for t in self.waiting if t < task]
                assert not any(self.free_for(t) for t in older), "an older task should go first"
                self.begin_on(decision)
            else:
                no_workers = self.is_hopeless(task)
                assert decision == GiveUp(task, self.losses[task], no_workers)
                assert no_workers or self.losses[task] >= self.max_attempts
                self.end(task, "given up")
            self.waiting.remove(task)

    def begin_on(self, start):
        free = self.free_for(start.task)
        assert start.worker in free
        assert len(self.on[start.worker]) == min(len(self.on[rank]) for rank in free)
        assert start.attempt == self.losses[start.task] + 1 <= self.max_attempts
        self.on[start.worker].append(start.task)

    def end(self, task, how):
        assert task not in self.ended
        self.ended[task] = how

    @rule(workers=st.sampled_from(RESTRICTIONS))
    def submit(self, workers):
        task = len(self.allowed)
        self.allowed[task], self.losses[task] = workers, 0
        if not self.free_for(task):
            assert not self.dispatcher.has_room(workers)
            with pytest.raises(ValueError, match="no free slot"):
                self.dispatcher.submit(task, workers)
            self.end(task, "refused")
            return
        assert self.dispatcher.has_room(workers)
        start = self.dispatcher.submit(task, workers)
        assert start.task == task
        self.begin_on(start)

    @rule(workers=st.sampled_from(RESTRICTIONS))
    def submit_while_there_is_room(self, workers):
        while self.dispatcher.has_room(workers):
            self.submit(workers)

    @precondition(lambda self: any(self.on.values()))
    @rule(data=st.data())
    def finish(self, data):
        rank = data.draw(st.sampled_from([r for r, tasks in self.on.items() if tasks]))
        task = data.draw(st.sampled_from(self.on[rank]))
        self.finish_on(task, rank)

    def finish_on(self, task, rank):
        self.on[rank].remove(task)
        self.end(task, "finished")
        self.apply(self.dispatcher.finish(task, rank))

    @precondition(lambda self: any(self.lost.values()))
    @rule(data=st.data())
    def answer_late(self, data):
        """A lost worker was only slow; its task may be elsewhere, or ended, by now."""
        rank = data.draw(st.sampled_from([r for r, tasks in self.lost.items() if tasks]))
        assert self.dispatcher.finish(data.draw(st.sampled_from(self.lost[rank])), rank) == []

    @precondition(lambda self: self.on)
    @rule(data=st.data())
    def lose(self, data):
        rank = data.draw(st.sampled_from(list(self.on)))
        tasks = self.on.pop(rank)
        self.lost[rank] = tasks
        if tasks:
            self.losses[tasks[0]] += 1  # the one that it computed; the others merely waited
        self.waiting = sorted(self.waiting + tasks)
        self.apply(self.dispatcher.mark_lost(rank))

    @precondition(lambda self: any(self.on.values()))
    @rule(data=st.data())
    def lose_with_an_answer(self, data):
        rank = data.draw(st.sampled_from([r for r, tasks in self.on.items() if tasks]))
        tasks = self.lost[rank] = self.on.pop(rank)
        task = data.draw(st.sampled_from(tasks))
        tasks.remove(task)
        self.end(task, "finished")
        self.waiting = sorted(self.waiting + tasks)
        self.apply(self.dispatcher.mark_lost(rank, task))

    @precondition(lambda self: len(self.on) < len(RANKS))
    @rule(data=st.data())
    def join(self, data):
        """One more worker, as when the driver helps, or a lost one that is back without tasks."""
        rank = data.draw(st.sampled_from([rank for rank in (0, *RANKS) if rank not in self.on]))
        self.on[rank] = []
        self.lost.pop(rank, None)
        self.apart.discard(rank)
        self.apply(self.dispatcher.join(rank))

    @precondition(lambda self: self.on)
    @rule(data=st.data())
    def set_apart(self, data):
        """It ends its tasks and gets no more."""
        rank = data.draw(st.sampled_from(list(self.on)))
        self.apart.add(rank)
        self.apply(self.dispatcher.set_apart(rank))

    @rule(worker=st.sampled_from((None, *RANKS)))
    def stop_waiting(self, worker):
        self.may_join -= set(RANKS) if worker is None else {worker}
        self.apply(self.dispatcher.stop_waiting(worker))
        assert not any(self.is_hopeless(task) for task in self.waiting)

    @precondition(lambda self: self.on)
    @rule(data=st.data())
    def join_again(self, data):
        assert self.dispatcher.join(data.draw(st.sampled_from(list(self.on)))) == []

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def lose_again(self, data):
        assert self.dispatcher.mark_lost(data.draw(st.sampled_from(list(self.lost)))) == []

    @invariant()
    def agrees_with_the_model(self):
        assert self.dispatcher.workers == tuple(sorted(self.on.keys() - self.apart))
        assert self.dispatcher.apart & self.on.keys() == self.apart & self.on.keys()
        assert self.dispatcher.may_join == self.may_join
        for rank in (0, *RANKS):
            assert self.dispatcher.on(rank) == tuple(self.on.get(rank, ()))
        assert all(len(tasks) <= self.depth for tasks in self.on.values())
        for workers in RESTRICTIONS:
            known = {*(self.on.keys() - self.apart), *self.may_join}
            able = any(workers is None or rank in workers for rank in known)
            assert self.dispatcher.can_ever_run(workers) == able

    @invariant()
    def every_task_is_in_one_place(self):
        places = [*self.waiting, *(t for tasks in self.on.values() for t in tasks), *self.ended]
        assert sorted(places) == list(self.allowed)
        for rank, tasks in self.on.items():
            assert self.dispatcher.on(rank) == tuple(tasks)

    @invariant()
    def nobody_waits_for_nothing(self):
        for task in self.waiting:
            assert not self.is_hopeless(task)
            assert not self.free_for(task)

    def teardown(self):
        """From any state, finishing what is on the workers drains it once nobody joins."""
        if not hasattr(self, "dispatcher"):
            return
        self.stop_waiting(None)
        for _ in range(len(self.waiting) + sum(map(len, self.on.values()))):
            rank = next(rank for rank, tasks in self.on.items() if tasks)
            self.finish_on(self.on[rank][0], rank)
        assert set(self.ended) == set(self.allowed)


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def test_idle_workers_take_turns():
    dispatcher = Dispatcher([1, 2, 3], depth=2)
    assert [dispatcher.submit(task).worker for task in range(6)] == [1, 2, 3, 1, 2, 3]
    assert not dispatcher.has_room()


def test_the_worker_used_longest_ago_comes_first():
    dispatcher = Dispatcher([1, 2], depth=1)
    for task in range(4):
        worker = dispatcher.submit(task).worker
        assert worker == (1, 2)[task % 2]
        assert dispatcher.finish(task, worker) == []


def test_tasks_of_a_lost_worker_go_to_the_others():
    dispatcher = Dispatcher([1, 2], depth=2)
    for task in range(3):
        dispatcher.submit(task)
    assert dispatcher.on(1) == (0, 2)
    assert dispatcher.mark_lost(1) == [Start(0, 2, attempt=2)]
    assert dispatcher.finish(1, 2) == [Start(2, 2, attempt=1)]


def test_tasks_of_several_lost_workers_go_oldest_first():
    dispatcher = Dispatcher([1, 2, 3], depth=1)
    for task in range(3):
        dispatcher.submit(task)
    assert dispatcher.mark_lost(1) == dispatcher.mark_lost(2) == []
    assert dispatcher.finish(2, 3) == [Start(0, 3, attempt=2)]
    assert dispatcher.finish(0, 3) == [Start(1, 3, attempt=2)]


def test_a_worker_that_joins_takes_what_waits():
    dispatcher = Dispatcher([1, 2], depth=1)
    dispatcher.submit(0)
    dispatcher.submit(1)
    assert dispatcher.mark_lost(1) == []
    assert dispatcher.join(0) == [Start(0, 0, attempt=2)]


def test_a_task_that_kills_its_workers_is_given_up():
    dispatcher = Dispatcher([1, 2, 3], depth=1, max_attempts=2)
    dispatcher.submit(0)
    assert dispatcher.mark_lost(1) == [Start(0, 2, attempt=2)]
    assert dispatcher.mark_lost(2) == [GiveUp(0, attempts=2, no_workers=False)]
    assert dispatcher.has_room()


def test_without_workers_every_task_is_given_up():
    dispatcher = Dispatcher([1], depth=2)
    dispatcher.submit(0)
    dispatcher.submit(1)
    assert dispatcher.mark_lost(1) == [GiveUp(0, 1, no_workers=True), GiveUp(1, 0, no_workers=True)]
    assert not dispatcher.can_ever_run()


def test_tasks_wait_for_workers_that_may_join():
    dispatcher = Dispatcher([1], depth=2, may_join=[1, 2])
    dispatcher.submit(0)
    dispatcher.submit(1)
    assert dispatcher.mark_lost(1) == []
    assert dispatcher.can_ever_run()
    assert not dispatcher.has_room()
    assert dispatcher.join(1) == [Start(0, 1, attempt=2), Start(1, 1, attempt=1)]


def test_tasks_are_given_up_once_nobody_joins():
    dispatcher = Dispatcher([1, 2], depth=1, may_join=[1, 2])
    dispatcher.submit(0, frozenset({1}))
    assert dispatcher.mark_lost(1) == dispatcher.stop_waiting(2) == []
    assert dispatcher.stop_waiting() == [GiveUp(0, 1, no_workers=True)]
    assert not dispatcher.can_ever_run(frozenset({1}))
    assert dispatcher.can_ever_run()


def test_a_restricted_task_never_leaves_its_workers():
    dispatcher = Dispatcher([1, 2], depth=1)
    assert dispatcher.submit(0, frozenset({2})).worker == 2
    assert not dispatcher.has_room(frozenset({2}))
    assert dispatcher.has_room()
    assert dispatcher.mark_lost(2) == [GiveUp(0, 1, no_workers=True)]


def test_a_late_answer_is_ignored():
    dispatcher = Dispatcher([1, 2], depth=1)
    dispatcher.submit(0)
    dispatcher.mark_lost(1)
    assert dispatcher.finish(0, 1) == []
    assert dispatcher.on(2) == (0,)


def test_a_number_in_use_is_refused():
    dispatcher = Dispatcher([1, 2])
    dispatcher.submit(7)
    with pytest.raises(ValueError, match="7 is already submitted"):
        dispatcher.submit(7)


@pytest.mark.parametrize("options", [{"depth": 0}, {"max_attempts": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        Dispatcher([1], **options)
