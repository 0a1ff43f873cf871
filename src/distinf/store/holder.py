"""Files of a store beside Zarr's: who holds it, that it is being created, saved states."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distinf.errors import StoreError

__all__ = [
    "CONTENTS",
    "CREATING",
    "HOLDER",
    "LOCK",
    "MEETING",
    "OWN",
    "RESTART",
    "has_ended",
    "held_by",
    "this_process",
]

# What all names begin with.
OWN = ".distinf."
LOCK = OWN + "lock"
HOLDER = LOCK + ".json"
# There while a store is being created; after a kill in between, the next run begins anew.
CREATING = LOCK + ".creating"
# The names of the store's arrays: what else lies there is somebody else's.
CONTENTS = OWN + "contents"
# A folder: states of the prognostic, until the forecast is complete.
RESTART = OWN + "restart"
# A word that the driver leaves for workers that write: they see the same store.
MEETING = OWN + "meeting"


def this_process() -> dict[str, Any]:
    """Who this process is, for whoever finds the store held."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
    return {**who, "machine": _machine(), "started": _started(os.getpid())}


def has_ended(who: Mapping[str, Any]) -> bool:
    """Whether that process ran on this machine and is certainly no more.

    Names of hosts repeat among containers, and numbers of processes in time: a boot, a namespace
    of processes and the tick at which a process started do not.
    """
    machine, started, pid = who.get("machine"), who.get("started"), who.get("pid")
    if not machine or not started or not isinstance(pid, int) or machine != _machine():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        pass
    now = _started(pid)
    return now is not None and now != started


def held_by(
    what: str, who: Mapping[str, Any], age: float | None = None, silence: float | None = None
) -> StoreError:
    """Say who holds a store, and when its hold ends if it is dead."""
    words = (
        f"{what} is held by another run: host {who.get('host', '?')}, process "
        f"{who.get('pid', '?')}, since {who.get('since', '?')}"
    )
    if age is not None:
        words += f", last sign of life {max(age, 0):.0f} s ago"
    if age is not None and silence is not None:
        words += f"; if that run is dead, try again {max(silence - age, 0) + 1:.0f} s later"
    return StoreError(words)


def _machine() -> str | None:
    """Return what tells this boot of this machine, and its namespace of processes, from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return None


def _started(pid: int) -> str | None:
    """Return the tick since boot at which a process started (field 22 of proc_pid_stat(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
