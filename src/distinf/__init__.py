"""Multi-GPU diagnostic inference for AI weather forecasts.

One GPU runs the forecast, all others run diagnostics on the steps it produces::

    from distinf import DistributedInference, session

    with session() as rank:
        if rank == 0:
            with DistributedInference(MyDiagnostic, "weights.pt") as infer:
                for y, y_coords in infer.starmap(rollout):
                    ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distinf.errors import (
    CallTimeout,
    ConfigError,
    DistinfError,
    Interrupted,
    SessionError,
    StoreError,
    TaskError,
    WorkerLost,
)
from distinf.options import Output
from distinf.session import Runtime, session

if TYPE_CHECKING:
    from physicsnemo.distributed import DistributedManager

    from distinf.forecast import rollout
    from distinf.inference import DistributedInference
    from distinf.output import ForecastStore
    from distinf.progress import Progress, summarize
    from distinf.proposed import local_concurrent_pipeline

# Imported on first use, so that a wrong config is answered before torch is loaded.
_HOME = {
    "DistributedInference": "distinf.inference",
    "DistributedManager": "physicsnemo.distributed",
    "ForecastStore": "distinf.output",
    "Progress": "distinf.progress",
    "local_concurrent_pipeline": "distinf.proposed",
    "rollout": "distinf.forecast",
    "summarize": "distinf.progress",
}

__all__ = [
    "CallTimeout",
    "ConfigError",
    "DistinfError",
    "DistributedInference",
    "DistributedManager",
    "ForecastStore",
    "Interrupted",
    "Output",
    "Progress",
    "Runtime",
    "SessionError",
    "StoreError",
    "TaskError",
    "WorkerLost",
    "local_concurrent_pipeline",
    "rollout",
    "session",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distinf' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
