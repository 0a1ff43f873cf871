"""Who may write to a store in an object store: one run, as long as it gives signs of life."""

from __future__ import annotations

import json
import threading
import time
import uuid
from typing import Any

from distinf.errors import StoreError
from distinf.store.conditional import Changed, Conditional, Seen
from distinf.store.holder import has_ended, held_by, this_process

__all__ = ["Hold"]

# A holder says this often that it lives, and is given up after silence. It writes nothing more
# without having said so for a shorter time, so that what is on its way arrives before that.
_BEAT_SECONDS = 20.0
_QUIET_SECONDS = 60.0
_SILENCE_SECONDS = 90.0
_TAKE_SECONDS = 30.0


class Hold:
    """An object that says who holds a store; every write of it is conditional on the last one.

    Parameters
    ----------
    url : str
        The store, for messages.
    path : str
        The object.
    store : Conditional
        Where it lies.
    """

    def __init__(self, url: str, path: str, store: Conditional) -> None:
        self._url, self._path, self._store = url, path, store
        self._me = {**this_process(), "token": uuid.uuid4().hex}
        self._turn = threading.Lock()
        self._end = threading.Event()
        self._version: str | None = None
        self._fresh = 0.0  # when the last beat that arrived was sent
        self._lost = ""

    def take(self) -> None:
        """Take it, and keep it fresh until `release`.

        Raises
        ------
        StoreError
            If another run has it.
        """
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
            if seen is not None and self._is_mine(seen):  # the answer was lost on its way
                self._version = seen.version
                break
            if seen is not None and not (who.get("released") or _is_dead(who, seen.age)):
                raise held_by(self._url, who, seen.age, _SILENCE_SECONDS)
            if sent > deadline:
                raise held_by(self._url, who)
            version = seen.version if seen else None
        self._fresh = sent
        threading.Thread(target=self._keep_fresh, name="distinf-hold", daemon=True).start()

    def check(self) -> None:
        """Raise `StoreError` if another run may hold the store by now."""
        if time.monotonic() - self._fresh > _QUIET_SECONDS:
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
        """Let other runs in; a hold that another run has taken stays."""
        self._end.set()
        with self._turn:
            if self._version is not None and not self._lost:
                self._write(released=True)
                self._version = None

    def _keep_fresh(self) -> None:
        while not self._end.wait(_BEAT_SECONDS):
            try:
                self._renew()
            except Exception:  # the next beat tries again
                continue
            if self._lost:
                return

    def _renew(self, older: float = 0.0) -> None:
        """Say that this run lives, if it has not done so for some seconds."""
        with self._turn:
            sent = time.monotonic()
            if self._end.is_set() or self._lost or sent - self._fresh < older:
                return
            if self._write():
                self._fresh = sent

    def _write(self, **more: Any) -> bool:
        """Replace one's own object; note it and return False if it is another's."""
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
            self._version = seen.version  # the answer to a write was lost on its way
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


def _is_dead(who: dict[str, Any], age: float) -> bool:
    return age > _SILENCE_SECONDS or has_ended(who)
