"""How fast a run is, by its first events."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from distinf.report.advice import Work
from distinf.report.events import Event

_SEEN = 3  # steps, and calls of each diagnostic, after which the pace is known


class Pace:
    """How long steps of the prognostic and calls of each diagnostic take, by their events."""

    def __init__(self, diagnostics: Sequence[str]) -> None:
        self._steps: list[float] = []
        self._calls: dict[str, list[float]] = {name: [] for name in diagnostics}

    def see(self, event: Event) -> None:
        """Take one more event into account."""
        seconds = event.end - event.start
        if event.kind == "forecast":
            self._steps.append(seconds)
        elif event.kind == "diagnose":
            self._calls.setdefault(event.task.partition(" ")[0], []).append(seconds)

    def work(self, blocks: int, nsteps: int) -> Work | None:
        """Return the work of so many blocks; None before enough was seen."""
        if len(self._steps) < _SEEN or any(len(c) < _SEEN for c in self._calls.values()):
            return None
        states, kinds = blocks * (nsteps + 1), max(1, len(self._calls))
        # Medians: the first step and the first call take longer.
        per_state = sum(median(seconds) for seconds in self._calls.values())
        step = median(self._steps)
        return Work(states, states * kinds, step, per_state / kinds, blocks=blocks)
