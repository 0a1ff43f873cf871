"""When the prognostic's steps were computed, told without waiting for its GPU."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from distinf.gpu import record_event
from distinf.report import Event, Events

__all__ = ["StepClock"]


class StepClock:
    """Records each step when it has been computed.

    On the CPU that is when the model returns it. A GPU only begins then: a thread waits for it, in
    the order of the steps.

    Parameters
    ----------
    events : Events | None
        Where steps are recorded; None: nowhere.
    marking : Callable[[torch.Tensor], Any], optional
        Returns an event behind what the calling thread has enqueued, None for the CPU.
    """

    def __init__(
        self, events: Events | None, marking: Callable[[torch.Tensor], Any] = record_event
    ) -> None:
        self._events = events
        self._marking = marking
        self._steps: queue.SimpleQueue[tuple[str, float, Any] | None] | None = None

    def stepped(self, label: str, start: float, x: torch.Tensor) -> None:
        """Take note of a step; returns at once.

        Parameters
        ----------
        label : str
            Which step it is.
        start : float
            When the model was asked for it, seconds since the epoch.
        x : torch.Tensor
            The state that it made.
        """
        if self._events is None:
            return
        computed = self._marking(x)
        if computed is None:
            self._events.record(Event("forecast", label, 0, start, time.time()))
            return
        if self._steps is None:
            self._steps = queue.SimpleQueue()
            threading.Thread(target=self._run, name="distinf-steps", daemon=True).start()
        self._steps.put((label, start, computed))

    def close(self) -> None:
        """Let the thread end behind the last step."""
        if self._steps is not None:
            self._steps.put(None)

    def _run(self) -> None:
        assert self._steps is not None
        assert self._events is not None
        before = 0.0
        while (step := self._steps.get()) is not None:
            label, start, computed = step
            try:
                computed.synchronize()
            except RuntimeError:  # the GPU failed; whoever uses the state says so
                return
            now = time.time()
            # Asked for while the GPU was still busy with the step before.
            self._events.record(Event("forecast", label, 0, max(start, before), now))
            before = now
