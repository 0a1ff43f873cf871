"""Files of a store beside Zarr's: who holds it, that it is being created, saved states."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from typing import Any

from distinf.errors import StoreError

__all__ = ["CREATING", "HOLDER", "LOCK", "MEETING", "RESTART", "held_by", "this_process"]

LOCK = ".distinf.lock"
HOLDER = LOCK + ".json"
# There while a store is being created; after a kill in between, the next run begins anew.
CREATING = LOCK + ".creating"
# A folder: states of the prognostic, until the forecast is complete.
RESTART = ".distinf.restart"
# A word that the driver leaves for workers that write: they see the same store.
MEETING = ".distinf.meeting"


def this_process() -> dict[str, Any]:
    """Who this process is, for whoever finds the store held."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def held_by(what: str, who: dict[str, Any]) -> StoreError:
    """Say who holds a store."""
    return StoreError(
        f"{what} is held by another run: host {who.get('host', '?')}, process "
        f"{who.get('pid', '?')}, since {who.get('since', '?')}"
    )
