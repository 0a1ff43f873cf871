"""A prognostic that is slow, draws random numbers and fails at chosen steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distinf.coords import Coords, State
from distinf.models import ShallowWater
from distinf.session import current_session


class Slow(ShallowWater):
    """The shallow-water model.

    Parameters
    ----------
    seconds : float
        How long each state takes, in addition.
    noise : float
        Size of random numbers that are added to the state before each step.
    faults : dict[str, str]
        What happens once at which state: ``{"2@12": kill}`` at member 2 and lead time 12 h;
        without an ensemble the member is 0. Rank 0 is neither killed nor stopped.
    folder : str
        Where a fault leaves a file when it happened.
    """

    def __init__(
        self,
        seconds: float = 0.0,
        noise: float = 0.0,
        faults: dict[str, str] | None = None,
        folder: str = ".",
        **model: Any,
    ) -> None:
        super().__init__(**model)
        self._seconds, self._noise = seconds, noise
        self._faults, self._folder = dict(faults or {}), Path(folder)
        self.front_hook = self._disturbed

    def _disturbed(self, x: torch.Tensor, coords: Coords) -> State:
        return (x + self._noise * torch.randn(x.shape) if self._noise else x), coords

    def create_iterator(self, x: torch.Tensor, coords: Coords) -> Iterator[State]:
        """Yield the states."""
        member = int(coords["ensemble"][0]) if "ensemble" in coords else 0
        for y, y_coords in super().create_iterator(x, coords):
            time.sleep(self._seconds)
            lead = int(y_coords["lead_time"][0] / np.timedelta64(1, "h"))
            self._fail(f"{member}@{lead}")
            yield y, y_coords

    def _fail(self, at: str) -> None:
        fault, seen = self._faults.get(at, ""), self._folder / f"fault {at}"
        if not fault or seen.exists() or (fault != "raise" and current_session().rank == 0):
            return
        seen.touch()
        if fault == "raise":
            raise ArithmeticError("the forecast has blown up")
        if fault == "kill later":
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[fault])
