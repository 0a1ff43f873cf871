"""What workers hold: how each resident model is constructed and set up, and who lacks what.

Pure, like the dispatcher: its caller makes the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from distinf.transport import Call


@dataclass(frozen=True)
class SetUp:
    """A call that a rank gets before its tasks, and the first answer of one that joined."""

    make: Callable[[int], Call]
    first: Future[Any] = field(default_factory=Future)


@dataclass
class _Model:
    ranks: frozenset[int] | None
    set_ups: list[SetUp] = field(default_factory=list)  # the first one constructs it


class Residents:
    """The resident models, and what each worker that joined got of them until it was there."""

    def __init__(self) -> None:
        self._models: dict[int, _Model] = {}
        self._has: dict[int, dict[int, int]] = {}  # rank: model: calls that it got for it

    def add(self, model: int, set_up: SetUp, ranks: frozenset[int] | None) -> None:
        """Remember one more call of a model, which is on ``ranks`` (None: all)."""
        self._models.setdefault(model, _Model(ranks)).set_ups.append(set_up)

    def drop(self, model: int) -> None:
        """Forget a model."""
        self._models.pop(model, None)

    def on(self, rank: int) -> list[int]:
        """List the models that belong on a rank."""
        return [n for n, own in self._models.items() if own.ranks is None or rank in own.ranks]

    def begin(self, rank: int) -> None:
        """Begin with a worker that holds nothing."""
        self._has[rank] = {}

    def next_for(self, rank: int) -> SetUp | None:
        """Return what a joining worker needs next; None if it lacks nothing and has no more."""
        has = self._has[rank]
        if dropped := has.keys() - self._models.keys():  # since they were constructed there
            call = Call(dropped.pop(), "__drop__")
            del has[call.model]
            return SetUp(lambda _: call)
        for model, own in sorted(self._models.items()):
            count = has.get(model, 0)
            if (own.ranks is None or rank in own.ranks) and count < len(own.set_ups):
                has[model] = count + 1
                return own.set_ups[count]
        return None
