"""A run of any size with a virtual clock, driven by distinf's own dispatcher; without torch."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from distinf.farm.dispatcher import Dispatcher, Start
from distinf.report.advice import Work, ideal

__all__ = ["Costs", "Outcome", "capacities", "divided", "read_costs", "simulate"]

DEPTH = 2  # as distinf.farm.farm.Farm


@dataclass(frozen=True)
class Costs:
    """What one step and one task cost.

    Parameters
    ----------
    prognostic, diagnostic : float
        Seconds of a prognostic step, of a diagnostic call.
    bytes_in, bytes_out : float
        Bytes of a call's input and of its result.
    link : float
        Bytes per second of the driver's link, in each direction.
    latency : float
        Seconds that a call is on its way, there and back, beside its bytes.
    submit, result : float
        Seconds of the driver's own for handing out a task, and for taking a result in and
        writing it. Only one thread of a Python process computes at a time, so these add up.
    write : float
        Seconds that a writing thread takes for a result.
    writers : int
        Writing threads.
    start : float
        Seconds until the first state is there.
    """

    prognostic: float
    diagnostic: float
    bytes_in: float = 0.0
    bytes_out: float = 0.0
    link: float = math.inf
    latency: float = 0.0
    submit: float = 0.0
    result: float = 0.0
    write: float = 0.0
    writers: int = 2
    start: float = 0.0

    def work(self, states: int, per_state: int = 1) -> Work:
        """Return the work of a run, as `distinf.report.advice` takes it."""
        return Work(
            states,
            states * per_state,
            self.prognostic,
            self.diagnostic,
            self.write,
            self.start,
            self.writers,
        )


@dataclass
class Outcome:
    """What a simulated run did.

    Parameters
    ----------
    wall : float
        Seconds until the last result was written.
    written : list[tuple[int, int]]
        Task and worker, in the order of writing.
    waited : float
        Seconds that the prognostic waited for a free worker or writer.
    own : float
        Seconds that the driver's own code computed.
    """

    wall: float = 0.0
    written: list[tuple[int, int]] = field(default_factory=list)
    waited: float = 0.0
    own: float = 0.0


class _Queue:
    """One or several servers that serve one after the other whoever comes, as he comes."""

    def __init__(self, servers: int = 1) -> None:
        self._free = [0.0] * servers

    def serve(self, now: float, seconds: float) -> float:
        """Return when a request that comes now is served."""
        end = max(now, self._free[0]) + seconds
        heapq.heapreplace(self._free, end)
        return end


class _Run:
    def __init__(self, costs: Costs, states: int, workers: int, per_state: int) -> None:
        self.costs, self.states, self.per_state = costs, states, per_state
        self.outcome = Outcome()
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._dispatcher = Dispatcher(range(1, workers + 1), DEPTH)
        self._workers = [_Queue() for _ in range(workers + 1)]
        self._there, self._back, self._own = _Queue(), _Queue(), _Queue()
        self._writers = _Queue(costs.writers)
        self._pending = 2 * (workers + costs.writers)  # as recipes/diagnostic.py
        self._prognostic = self._forecast()
        self._waiting_since: float | None = None

    def to_end(self) -> Outcome:
        self._go_on()
        while self._events:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        self.outcome.wall = self.now
        return self.outcome

    def _at(self, time: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), happen))

    def _go_on(self) -> None:
        """Let the prognostic's thread go on to where it next takes time, or waits."""
        until = next(self._prognostic, math.inf)
        if until is None:
            self._waiting_since = self.now
        elif until < math.inf:
            self._at(until, self._go_on)

    def _changed(self) -> None:
        if self._waiting_since is not None:
            self.outcome.waited += self.now - self._waiting_since
            self._waiting_since = None
            self._go_on()

    def _compute(self, seconds: float) -> float:
        self.outcome.own += seconds
        return self._own.serve(self.now, seconds)

    def _forecast(self) -> Iterator[float | None]:
        """Step, submit, step: yields when to go on; None: when something has changed."""
        task = 0
        for state in range(self.states):
            yield self.now + (self.costs.prognostic if state else self.costs.start)
            for _ in range(self.per_state):
                yield self._compute(self.costs.submit)
                while not self._dispatcher.has_room():
                    yield None
                self._send(self._dispatcher.submit(task))
                task += 1
                while self._pending == 0:
                    yield None
                self._pending -= 1

    def _send(self, start: Start) -> None:
        costs = self.costs
        there = self._there.serve(self.now, costs.bytes_in / costs.link) + costs.latency / 2
        end = self._workers[start.worker].serve(there, costs.diagnostic)
        self._at(end, lambda: self._return(start))

    def _return(self, start: Start) -> None:
        costs = self.costs
        back = self._back.serve(self.now, costs.bytes_out / costs.link) + costs.latency / 2
        self._at(back, lambda: self._take_in(start))

    def _take_in(self, start: Start) -> None:
        self._at(self._compute(self.costs.result), lambda: self._finish(start))

    def _finish(self, start: Start) -> None:
        self._dispatcher.finish(start.task, start.worker)
        written = self._writers.serve(self.now, self.costs.write)
        self._at(written, lambda: self._written(start))
        self._changed()

    def _written(self, start: Start) -> None:
        self.outcome.written.append((start.task, start.worker))
        self._pending += 1
        self._changed()


def simulate(costs: Costs, states: int, workers: int, per_state: int = 1) -> Outcome:
    """Simulate a run of one driver.

    Parameters
    ----------
    costs : Costs
        What a step and a task cost.
    states : int
        States that the prognostic makes.
    workers : int
        Workers, at least 1.
    per_state : int, optional
        Diagnostic calls for each state, by default 1.
    """
    return _Run(costs, states, workers, per_state).to_end()


def divided(
    costs: Costs, states: int, workers: int, forecasts: int, drivers: int, per_state: int = 1
) -> Outcome | None:
    """Simulate independent forecasts, of ``states`` each, divided over several drivers.

    Returns
    -------
    Outcome | None
        Of the driver that has most to do; None where there are not enough forecasts or workers.
    """
    if drivers > min(forecasts, workers):
        return None
    share = math.ceil(forecasts / drivers)
    return simulate(costs, states * share, workers // drivers, per_state)


def capacities(costs: Costs, per_state: int = 1) -> dict[str, float]:
    """Tell how many tasks per second each part of the driver's side could keep up."""

    def rate(seconds: float) -> float:
        return math.inf if seconds == 0 else 1 / seconds

    return {
        "the prognostic": per_state * rate(costs.prognostic),
        "the driver's own code": rate(costs.submit + costs.result),
        "the link": rate(max(costs.bytes_in, costs.bytes_out) / costs.link),
        "writing": costs.writers * rate(costs.write),
    }


def read_costs(path: Path, base: Costs) -> tuple[Costs, int, int]:
    """Take costs from the ``events.jsonl`` of a run.

    Parameters
    ----------
    path : Path
        The file.
    base : Costs
        What the events do not tell: link, latency, the driver's own seconds, writers.

    Returns
    -------
    tuple[Costs, int, int]
        The costs, the number of states, and diagnostic calls for each state.
    """
    import json

    from distinf.report.events import Event, Totals

    totals = Totals()
    for line in path.read_text(encoding="utf-8").splitlines():
        totals.add(Event(**json.loads(line)))
    work = totals.work(base.writers)
    if work is None:
        raise SystemExit(f"{path} has no diagnostic call")
    costs = replace(
        base,
        prognostic=work.prognostic,
        diagnostic=work.diagnostic,
        bytes_in=totals.nbytes["diagnose"] / work.tasks,
        bytes_out=totals.nbytes_out / work.tasks,
        write=work.write,
        start=work.start,
    )
    return costs, work.states, max(1, round(work.tasks / work.states))


def floor(costs: Costs, states: int, workers: int, per_state: int = 1) -> float:
    """Return the ideal time of a run; see `distinf.report.advice`."""
    return ideal(costs.work(states, per_state), workers)
