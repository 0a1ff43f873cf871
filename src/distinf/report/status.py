"""What the workers do at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Status:
    """A read-only view of a farm.

    Parameters
    ----------
    workers : int
        Workers that are there.
    busy : int, optional
        Those that have a task.
    queued : int, optional
        Tasks that wait, on a worker or for one.
    full : bool, optional
        Whether a further task waits until a worker is free.
    lost : tuple[int, ...], optional
        Ranks that were lost and have not come back, ascending.
    losses : int, optional
        How many were lost so far, also those that came back.
    silent : Mapping[int, float], optional
        Ranks that are late with a sign of life, with the seconds since it was asked for.
    retried : int, optional
        Attempts so far that repeated one on a lost worker.
    waiting : str, optional
        Says that the session waits for workers; empty while it does not.
    """

    workers: int
    busy: int = 0
    queued: int = 0
    full: bool = False
    lost: tuple[int, ...] = ()
    losses: int = 0
    silent: Mapping[int, float] = field(default_factory=dict)
    retried: int = 0
    waiting: str = ""

    @property
    def trouble(self) -> list[str]:
        """Says which ranks are lost or silent, and how many tasks were tried again."""
        found = [f"rank {rank} lost" for rank in self.lost]
        found += [f"rank {r} silent for {s:.0f} s" for r, s in sorted(self.silent.items())]
        if self.retried:
            found.append(f"{self.retried} task{'s' * (self.retried > 1)} tried again")
        return found
