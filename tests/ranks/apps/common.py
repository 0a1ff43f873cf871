"""What the small applications share: reports to the test, a state, waiting for a file."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

VARIABLES = np.array(["u10m", "v10m", "t2m", "sp"])
WAIT_SECONDS = 60.0


def report(name: str, value: Any) -> None:
    """Print a ``[name, value]`` line for the test."""
    print(json.dumps([name, value]), flush=True)


def state(step: int = 0, value: float | None = None) -> tuple[torch.Tensor, Any]:
    """A state of a forecast; each variable holds its own number, or all hold ``value``."""
    coords = OrderedDict(
        time=np.array(["2023-06-01"], dtype="datetime64[ns]"),
        lead_time=np.array([6 * step], dtype="timedelta64[h]"),
        variable=VARIABLES,
        lat=np.linspace(90, -90, 19),
        lon=np.linspace(0, 360, 36, endpoint=False),
    )
    x = torch.empty([len(values) for values in coords.values()])
    x[:] = torch.arange(4.0).reshape(4, 1, 1) if value is None else value
    return x, coords


def wait_for(path: Path) -> None:
    """Wait until a file exists; raise an error after the deadline."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path.name} was not created")
        time.sleep(0.01)


def outcome_of(call: Any, *args: Any, **kwargs: Any) -> Any:
    """What a call returned, or which error it raised and what that says."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        return {
            "kind": type(error).__name__,
            "text": str(error),
            "notes": "\n".join(getattr(error, "__notes__", ())),
            "fields": {
                key: getattr(error, key)
                for key in ("what", "task", "rank", "host", "attempt", "kind", "remote_message")
                if hasattr(error, key)
            },
        }
