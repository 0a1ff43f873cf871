"""When a run will end, by the pace of its last results."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque

_SECONDS = 30.0  # the pace is that of so long, where results are that frequent
_FEWEST = 4  # results that make a pace
_MOST = 100_000  # that are remembered


class Ending:
    """Estimates the end of a run from the times at which its results were written.

    Results that were there before the run do not count. A round is as many results as the workers
    give at once. The first round makes no pace, since the time before it has no results.
    Safe from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written: deque[float] = deque(maxlen=_MOST)

    def see(self, now: float) -> None:
        """Take one more result into account."""
        with self._lock:
            self._written.append(now)

    def begin_again(self) -> None:
        """Forget the pace so far: the workers are others now."""
        with self._lock:
            self._written.clear()

    def estimate(self, remaining: int, now: float, size: int = 1) -> float | None:
        """Return when so many more results will be written, in the unit of ``now``.

        ``size`` is that of a round. None: nothing remains, or it is not known yet, before two
        rounds and a few results have been written.
        """
        with self._lock:
            written = sorted(self._written)  # threads may write at once
        rounds, fewest = len(written) // size - 1, -(-_FEWEST // size)
        if remaining < 1 or rounds < fewest:
            return None
        recent = len(written) - 1 - bisect_left(written, written[-1] - _SECONDS)
        # Whole rounds, since the workers may give their results at the same time.
        count = size * min(rounds, max(fewest, -(-recent // size)))
        elapsed = written[-1] - written[-1 - count]
        # A late result makes the pace slower before it comes.
        late = max(0.0, now - written[-1] - size * elapsed / count)
        return max(now, written[-1] + late + remaining * (elapsed + late) / count)
