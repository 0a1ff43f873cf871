"""The lives of workers: who is there or joins, who was lost, and who is left out.

Pure, like the dispatcher: its caller holds the lock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable


class Lives:
    """A new life of a worker begins each time that it joins, and ends when it is lost.

    ``lost`` has the ranks that were lost and have no models since, ``losses`` is their number with
    those that came back.
    """

    def __init__(self, ranks: Iterable[int]) -> None:
        self.lost: set[int] = set()
        self.losses = 0
        self._numbers = itertools.count()
        self._now = {rank: next(self._numbers) for rank in ranks}
        self._left_out: set[int] = set()

    def now(self, rank: int) -> int | None:
        """Return the number of the life that a rank is in; None: it is not there."""
        return self._now.get(rank)

    def __getitem__(self, rank: int) -> int:
        """Return the number of the life of a rank that is there."""
        return self._now[rank]

    def all(self) -> dict[int, int]:
        """Return the ranks that are there or join, and which life each is in."""
        return dict(self._now)

    def begin(self, rank: int) -> int | None:
        """Begin the life of a rank that joins, and return its number; None: it is left out."""
        if rank in self._left_out:
            return None
        life = self._now[rank] = next(self._numbers)
        return life

    def has_models(self, rank: int) -> None:
        """Note that a rank that joined gets tasks now."""
        self.lost.discard(rank)

    def end(self, rank: int, is_loss: bool) -> int:
        """End the life of a rank; return its number."""
        if is_loss:
            self.lost.add(rank)
            self.losses += 1
        return self._now.pop(rank)

    def leave_out(self, rank: int) -> None:
        """Begin no more life of a rank, and end the present one without a loss."""
        self._left_out.add(rank)
        self._now.pop(rank, None)
