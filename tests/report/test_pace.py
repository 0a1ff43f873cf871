"""The pace of a run, from which `runtime.drivers=auto` follows."""

from __future__ import annotations

from distinf.report import Event, Pace, best_drivers, why_so_many


def test_the_pace_is_known_after_some_calls_of_each_diagnostic() -> None:
    pace = Pace(["wind", "rain"])

    def see(kind: str, task: str, seconds: float) -> None:
        pace.see(Event(kind, task, 0, 0.0, seconds))

    for seconds in (9.0, 0.5, 0.5):
        see("forecast", "2023-06-01T00:00 step 1", seconds)
        see("diagnose", "wind 2023-06-01T00:00 +6 h", seconds)
        assert pace.work(8, 11, 88) is None
    for seconds in (7.0, 2.0, 2.0):
        assert pace.work(8, 11, 88) is None
        see("diagnose", "rain 2023-06-01T00:00 +6 h", seconds)
    work = pace.work(8, 11, 88)
    assert work is not None
    assert (work.states, work.tasks, work.blocks) == (88, 176, 8)
    assert (work.prognostic, work.calls) == (0.5, 88 * 2.5)
    assert best_drivers(work, 3) == 3
    said = why_so_many(work, 3, 3)
    assert said.startswith("each rank runs both. A step takes 0.5 s and the diagnostics of a state")
    assert "at least 98.5 s, and 110.0 s with one driver, where" in said
    assert why_so_many(work, 1, 3).startswith("1 of 3 ranks forecast")
