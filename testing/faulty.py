"""A diagnostic that fails at chosen lead times."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from distinf.errors import SessionError
from distinf.session.session import current_session

_GROWTH = 3 * 2**30  # bytes
_held: list[torch.Tensor] = []


class Unpicklable(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__("two arguments went in")
        self.lambda_ = lambda: 0


def _on_worker() -> bool:
    try:
        return current_session().rank != 0
    except SessionError:  # an actor of Ray: only the driver has a session
        return True


class Faulty:
    """Twice the wind, except at its faults.

    Parameters
    ----------
    faults : dict[int, str]
        What happens at which lead time (h).
    folder : str
        Where a fault that happens once leaves a file when it did.
    constructor : str
        What happens at construction.
    seconds : float
        How long a call takes.
    """

    def __init__(
        self,
        faults: dict[int, str],
        folder: str = ".",
        constructor: str = "",
        seconds: float = 0.0,
    ) -> None:
        self.faults, self.folder, self.seconds = dict(faults), Path(folder), seconds
        if constructor == "hang":
            time.sleep(3600)
        if constructor == "raise":
            raise RuntimeError("no weights here")

    def input_coords(self) -> OrderedDict[str, np.ndarray]:
        free = np.empty(0)
        return OrderedDict(batch=free, variable=np.array(["u850"]), lat=free, lon=free)

    def output_coords(self, coords: Any) -> Any:
        return OrderedDict(coords, variable=np.array(["twice"]))

    def __call__(self, x: torch.Tensor, coords: Any) -> Any:
        time.sleep(self.seconds)
        lead = int(coords["lead_time"][0] / np.timedelta64(1, "h"))
        fault = self.faults.get(lead, "")
        if fault.startswith("on a worker "):
            fault = fault.removeprefix("on a worker ") if _on_worker() else ""
        if fault.startswith("once "):
            fault = fault.removeprefix("once ") if self._first_time(f"{lead}") else ""
        self._do(fault)
        y = 2 * x
        if fault == "not finite":
            y[..., 0, :3] = float("nan")
        if fault == "shape":
            y = y[..., :-1]
        return y, self.output_coords(coords)

    def _first_time(self, name: str) -> bool:
        try:
            (self.folder / f"fault {name}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _do(self, fault: str) -> None:
        if fault == "raise":
            raise ArithmeticError("negative humidity")
        if fault == "bytes":
            raise RuntimeError(r"bad \x80 byte " + "\x80")
        if fault == "unpicklable":
            raise Unpicklable(1, 2)
        if fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if fault == "exit":
            sys.exit(3)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "sleep":
            time.sleep(3600)
        if fault == "grow":
            _held.append(torch.ones(_GROWTH, dtype=torch.uint8))
            time.sleep(3600)


class FaultyTogether(Faulty):
    """The same on several ranks, each of which waits for the others; one of them has the fault."""

    def __init__(self, *args: Any, group: dist.ProcessGroup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group = group

    def __call__(self, x: torch.Tensor, coords: Any) -> Any:
        result = super().__call__(x, coords)
        dist.all_reduce(torch.zeros(1), group=self._group)
        return result
