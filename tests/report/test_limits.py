"""What limits a run now: asked of simulated runs, of which the slowest stage is known."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distinf.report.events import Event
from distinf.report.limits import LIMITS, Recent, Shares, limited_by
from distinf.report.status import Status

SHARE = st.floats(0, 1)
LOOK = 0.25


@dataclass(frozen=True)
class Run:
    """Times in seconds of a step, of a call and of a write."""

    forecast: float
    diagnose: float
    write: float
    workers: int
    writers: int
    states: int = 60

    @property
    def slowest(self):
        """Its slowest stage, and how much slower it is than the second."""
        seconds = {
            "prognostic": self.forecast,
            "diagnostics": self.diagnose / self.workers,
            "writing": self.write / self.writers,
        }
        *_, second, most = sorted(seconds.values())
        return max(seconds, key=lambda stage: seconds[stage]), most / second

    def simulate(self):
        """Return the events, and when a task waited and was on a worker: three lists."""
        events, full, calls, written = [], [], [], []
        now = 0.0
        free, threads = [0.0] * self.workers, [0.0] * self.writers
        for i in range(self.states):
            there = now + self.forecast
            events.append(Event("forecast", f"step {i}", 0, now, there))
            begun = max(there, calls[i - 2 * self.workers][2] if i >= 2 * self.workers else 0.0)
            full.append((there, begun))
            rank = i % self.workers
            start = max(begun, free[rank])
            free[rank] = start + self.diagnose
            events.append(Event("diagnose", f"a {i}", rank + 1, start, free[rank]))
            calls.append((rank, begun, free[rank]))
            thread = int(np.argmin(threads))
            start = max(free[rank], threads[thread])
            threads[thread] = start + self.write
            events.append(Event("write", f"a {i}", 0, start, threads[thread]))
            pending = 2 * (self.workers + self.writers)
            now = max(begun, written[i - pending] if i >= pending else 0.0)
            written.append(threads[thread])
        return events, full, calls

    def limit(self, part):
        """Say what limits it after this part of its forecast."""
        events, full, calls = self.simulate()
        now = part * max(e.end for e in events if e.kind == "forecast")
        recent = Recent(self.writers, 0.0)
        for event in sorted(events, key=lambda e: e.end):
            if event.end <= now:
                recent.see(event)
        for time in np.arange(max(0.0, now - 200 * LOOK), now, LOOK):
            busy = len({rank for rank, start, end in calls if start <= time < end})
            waits = any(start <= time < end for start, end in full)
            recent.sample(Status(self.workers, busy, full=waits), float(time))
        return limited_by(recent.shares(now))


SECONDS = st.floats(0.05, 20)


@given(
    run=st.builds(Run, SECONDS, SECONDS, SECONDS, st.integers(1, 4), st.integers(1, 3)),
    part=st.floats(0.6, 1),
)
def test_it_names_the_slowest_stage(run, part):
    stage, factor = run.slowest
    assume(factor > 2)
    assert run.limit(part) == stage


def test_a_run_that_changes_is_seen_soon():
    """Steps were slow; since 15 s the workers are full."""
    recent = Recent(1, 0.0)
    for i in range(100):
        recent.see(Event("forecast", f"step {i}", 0, float(i), i + 1.0))
    assert limited_by(recent.shares(100.0)) == "prognostic"
    for i in range(60):
        recent.sample(Status(2, 2, full=True), 100 + i * LOOK)
    assert limited_by(recent.shares(115.0)) == "diagnostics"


def test_while_the_run_waits_for_workers_nothing_else_limits_it():
    recent = Recent(1, 0.0)
    recent.see(Event("forecast", "step 0", 0, 0.0, 9.0))
    recent.sample(Status(0, waiting="waiting for workers: 0 of 1"), 9.5)
    assert limited_by(recent.shares(10.0)) == "workers"
    recent.sample(Status(1), 10.0)
    assert limited_by(recent.shares(10.0)) == "prognostic"


def test_it_begins_with_reading_and_a_step_follows():
    recent = Recent(1, 0.0)
    assert limited_by(recent.shares(3.0)) == "reading"
    recent.see(Event("read", "2000-01-01", 0, 0.0, 5.0))
    assert limited_by(recent.shares(5.1)) == "reading"
    assert limited_by(recent.shares(8.0)) == "prognostic"


@pytest.mark.parametrize(("reading", "limit"), [(3.0, "reading"), (0.5, "diagnostics")])
def test_workers_that_read_an_archive(reading, limit):
    recent = Recent(1, 0.0)
    for i in range(10):
        recent.see(Event("read", f"a {i}", 1, float(i), i + reading))
        recent.see(Event("diagnose", f"a {i}", 1, float(i), i + 1.0))
    recent.sample(Status(1, 1, full=True), 9.9)
    assert limited_by(recent.shares(10.0)) == limit


def test_the_last_calls_and_writes_are_named():
    last = Event("forecast", "step 9", 0, 0.0, 1.0)
    recent = Recent(2, 0.0)
    recent.see(last)
    for i in range(40):
        recent.sample(Status(4, 1), 20 + i * LOOK)
    assert limited_by(recent.shares(30.0)) == "diagnostics"
    recent.see(Event("write", "a 9", 0, 30.0, 45.0))
    recent.sample(Status(4, 0), 75.0)
    assert limited_by(recent.shares(75.0)) == "writing"


@given(st.builds(Shares, SHARE, SHARE, SHARE, SHARE, SHARE, st.booleans(), st.booleans()))
def test_the_first_stage_in_a_full_queue_is_not_blamed(shares):
    limit = limited_by(shares)
    assert limit in LIMITS
    full = replace(shares, write=1.0, too_few=False)
    assert limited_by(full) == "writing"
    assert limited_by(replace(full, write=0.0, full=1.0)) in ("diagnostics", "reading")


def test_old_events_are_forgotten():
    recent = Recent(1, 0.0)
    for i in range(5000):
        recent.see(Event("write", f"a {i}", 0, i * 0.01, (i + 1) * 0.01))
    assert len(recent._events) == 1000
    assert limited_by(recent.shares(50.0)) == "writing"
