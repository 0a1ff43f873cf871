"""Who may write to a store: one run at a time.

In a folder the operating system's lock decides, in an object store an object that its holder
renews. Both name the process that holds the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import psutil

from distinf.errors import StoreError

# Names of distinf's own files in a store: what all begin with, the lock, and who holds it.
OWN = ".distinf."
LOCK = OWN + "lock"
HOLDER = LOCK + ".json"

# A holder renews its object in each beat. Without a renewal it writes nothing more after the quiet
# time; another run may take the store after the longer silence, when that writing has arrived.
_BEAT_SECONDS = 20.0
_QUIET_SECONDS = 60.0
_SILENCE_SECONDS = 90.0
_TAKE_SECONDS = 30.0

_TICKS = os.sysconf("SC_CLK_TCK")
_SAME_TICKS = 2 * _TICKS  # psutil knows the time of boot to a second


class Changed(Exception):
    """The object is not as the writer saw it."""


@dataclass(frozen=True)
class Seen:
    """An object as it was read."""

    data: bytes
    version: str
    age: float  # seconds since it was written, by the store's own clock


class Conditional(Protocol):
    """A store that writes under a condition, checking it and writing in one step."""

    def put(self, path: str, data: bytes, version: str | None) -> str:
        """Replace an object of this version (None: create it); return the new version.

        Raises `Changed`, and writes nothing, if it has another version.
        """
        ...

    def read(self, path: str) -> Seen | None:
        """Read an object; None if there is none."""
        ...


class ObjectHold:
    """An object that says who holds a store; every write of it is conditional on the last one."""

    def __init__(self, url: str, path: str, store: Conditional) -> None:
        self._url, self._path, self._store = url, path, store
        self._me = {**this_process(), "token": uuid.uuid4().hex}
        self._turn = threading.Lock()
        self._end = threading.Event()
        self._version: str | None = None
        self._renewed = 0.0  # when the last renewal that arrived was sent
        self._lost = ""

    def take(self) -> None:
        """Take it, and renew it until `release`; raise `StoreError` if another run has it."""
        deadline = time.monotonic() + _TAKE_SECONDS
        version: str | None = None
        while True:
            sent = time.monotonic()
            try:
                self._version = self._store.put(self._path, self._data(), version)
                break
            except Changed:
                seen = self._store.read(self._path)
            who = _who(seen)
            if seen is not None and self._is_mine(seen):  # the answer to the write was lost
                self._version = seen.version
                break
            dead = seen is None or seen.age > _SILENCE_SECONDS or has_ended(who)
            if seen is not None and not (dead or who.get("released")):
                raise held_by(self._url, who, seen.age)
            if sent > deadline:
                raise held_by(self._url, who)
            version = seen.version if seen else None
        self._renewed = sent
        threading.Thread(target=self._keep_renewing, name="distinf-hold", daemon=True).start()

    def check(self) -> None:
        """Raise `StoreError` if another run may hold the store by now."""
        if time.monotonic() - self._renewed > _QUIET_SECONDS:
            try:
                self._renew(_QUIET_SECONDS)
            except Exception as error:
                raise StoreError(
                    f"the hold on {self._url} could not be renewed for {_QUIET_SECONDS:.0f} s, "
                    f"and another run may take it: {type(error).__name__}: {error}"
                ) from error
        if self._lost:
            raise StoreError(self._lost)

    def release(self) -> None:
        """Let other runs in; a hold that another run has taken is not changed."""
        self._end.set()
        with self._turn:
            if self._version is not None and not self._lost:
                self._write(released=True)
                self._version = None

    def _keep_renewing(self) -> None:
        while not self._end.wait(_BEAT_SECONDS):
            with contextlib.suppress(Exception):  # the next beat tries again
                self._renew()

    def _renew(self, older: float = 0.0) -> None:
        """Renew the object, if the last time was more than some seconds ago."""
        with self._turn:
            sent = time.monotonic()
            if self._end.is_set() or self._lost or sent - self._renewed < older:
                return
            if self._write():
                self._renewed = sent

    def _write(self, **more: Any) -> bool:
        """Replace this run's object; note it and return False if another run has it."""
        data = self._data(**more)
        while True:
            try:
                self._version = self._store.put(self._path, data, self._version)
                return True
            except Changed:
                seen = self._store.read(self._path)
            if seen is None:
                self._lost = f"somebody removed {self._path} and so the hold on {self._url}"
                return False
            if not self._is_mine(seen):
                self._lost = f"this run lost its hold: {held_by(self._url, _who(seen), seen.age)}"
                return False
            self._version = seen.version  # the answer to a write was lost
            if seen.data == data:
                return True

    def _data(self, **more: Any) -> bytes:
        # No two writes have the same bytes: S3's versions are checksums.
        what = {**self._me, "beat": time.time(), "write": uuid.uuid4().hex, **more}
        return json.dumps(what).encode()

    def _is_mine(self, seen: Seen) -> bool:
        return bool(_who(seen).get("token") == self._me["token"])


def _who(seen: Seen | None) -> dict[str, Any]:
    try:
        who = json.loads(seen.data) if seen else {}
    except ValueError:
        who = {}
    return who if isinstance(who, dict) else {}


def this_process() -> dict[str, Any]:
    """Describe this process, for another run that finds the store held."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
    return {**who, "machine": _machine(), "started": _started(os.getpid())}


def has_ended(who: Mapping[str, Any]) -> bool:
    """Whether that process ran on this machine and certainly ended.

    Names of hosts repeat among containers, and numbers of processes in time: a boot, a namespace
    of processes and the time since boot at which a process started do not.
    """
    machine, started, pid = who.get("machine"), who.get("started"), who.get("pid")
    if not machine or not started or not isinstance(pid, int) or machine != _machine():
        return False
    if not psutil.pid_exists(pid):
        return True
    now = _started(pid)
    return now is not None and abs(int(now) - int(started)) > _SAME_TICKS


def held_by(what: str, who: Mapping[str, Any], age: float | None = None) -> StoreError:
    """Return the error that names who holds a store, and when an object's hold ends if it is dead.

    ``age`` is the time since the holder's last sign of life, in seconds.
    """
    words = (
        f"{what} is held by another run: host {who.get('host', '?')}, process "
        f"{who.get('pid', '?')}, since {who.get('since', '?')}"
    )
    if age is not None:
        wait = max(_SILENCE_SECONDS - age, 0) + 1
        words += f", last sign of life {max(age, 0):.0f} s ago"
        words += f"; if that run is dead, try again {wait:.0f} s later"
    return StoreError(words)


def _machine() -> str | None:
    """Identify this boot of this machine and its namespace of processes, on Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return None


def _started(pid: int) -> str | None:
    """Return the tick since boot at which a process started; clocks that are set do not move it."""
    try:
        seconds = psutil.Process(pid).create_time() - psutil.boot_time()
    except psutil.Error:
        return None
    return str(round(seconds * _TICKS))
