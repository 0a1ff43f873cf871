"""Diagnostics on the driver itself, when no worker is left or the prognostic would wait."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from distinf.transport import Call, Reply, Transport

__all__ = ["DriverWorks"]


class DriverWorks:
    """Runs calls in the driver's own process; its models are constructed when first needed.

    ``transport`` runs a call in this process (None: the driver runs none), ``call_timeout`` is its
    deadline in seconds. ``when`` is ``runtime.driver_works``: ``"never"``, ``"fallback"`` for tasks
    none of whose workers is left, ``"idle"`` also for a submitter that finds no room.
    """

    def __init__(
        self, transport: Transport | None, when: str, call_timeout: float | None = None
    ) -> None:
        self._timeout = call_timeout
        self.able = transport is not None and when != "never"
        self.while_idle = self.able and when == "idle"
        self._transport = transport
        self._builds: dict[int, Call] = {}
        self._built: set[int] = set()
        self._turn = threading.Lock()
        self._limits: set[frozenset[int]] = set()

    def note_build(self, call: Call) -> None:
        """Remember how a model is constructed."""
        self._builds[call.model] = call

    def admit(self, workers: frozenset[int] | None) -> frozenset[int] | None:
        """Add the driver to the ranks that may run a task; it joins when it has to."""
        if workers is None or not self.able:
            return workers
        self._limits.add(workers)
        return workers | {0}

    def needed(self, left: Iterable[int]) -> bool:
        """Whether some tasks could run on none of the workers that are left."""
        left = set(left) - {0}
        return self.able and (not left or any(limit.isdisjoint(left) for limit in self._limits))

    def run(self, call: Call) -> Reply:
        """Run a call here; after a `CallTimeout` the model goes on, and no other one can run."""
        assert self._transport is not None
        with self._turn:
            if call.model not in self._built:
                reply = self._transport.send(0, self._builds[call.model], self._timeout).result()
                if reply.failure is not None:
                    return reply
                self._built.add(call.model)
            return self._transport.send(0, call, self._timeout).result()
