"""How fast a run is, by its first events."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from distinf.report.advice import Work
from distinf.report.events import Event

# Steps, and calls of each diagnostic: so many make the pace known, and so many are kept.
_SEEN, _MOST = 3, 15


class Pace:
    """How long steps of the prognostic and calls of each diagnostic take, by their events."""

    def __init__(self, diagnostics: Sequence[str]) -> None:
        self._steps: list[float] = []
        self._calls: dict[str, list[float]] = {name: [] for name in diagnostics}

    def see(self, event: Event) -> None:
        """Take one more event into account."""
        seen = None
        if event.kind == "forecast":
            seen = self._steps
        elif event.kind == "diagnose":
            seen = self._calls.setdefault(event.task.partition(" ")[0], [])
        if seen is not None and len(seen) < _MOST:
            seen.append(event.end - event.start)

    def work(self, blocks: int, nstates: int, stored: int) -> Work | None:
        """Return the work of so many blocks; None before enough was seen.

        Each block has ``nstates`` steps; ``stored`` states of all are diagnosed.
        """
        if len(self._steps) < _SEEN or any(len(c) < _SEEN for c in self._calls.values()):
            return None
        kinds = max(1, len(self._calls))
        # Medians: the first step and the first call take longer.
        per_state = sum(median(seconds) for seconds in self._calls.values())
        tasks, step = max(1, stored * kinds), median(self._steps)
        return Work(blocks * nstates, tasks, step, per_state / kinds, blocks=blocks)
