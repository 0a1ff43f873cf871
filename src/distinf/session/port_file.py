"""How the ranks of one machine learn the port that their driver found free.

The driver writes it into a file named after the launch, in a folder that only this user can
read, and keeps the file locked: the lock ends with its process, so a file that nobody locks is a
leftover. It removes the file when all ranks have arrived, so that the next session, or the next
program under the same launcher, cannot find an old one.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distinf.errors import SessionError
from distinf.paths import private_folder

__all__ = ["published", "read"]

_POLL_SECONDS = 0.02
_LOCK_SECONDS = 2.0  # a reader holds the lock for a moment


@contextmanager
def published(job: str, port: int) -> Iterator[None]:
    """Let this launch's other ranks know the port, during the block.

    Parameters
    ----------
    job : str
        What the ranks of this launch have in common.
    port : int
        On 127.0.0.1.

    Raises
    ------
    SessionError
        If another run with the same ranks is doing so now.
    """
    path = private_folder(SessionError) / f"{job}.port"
    handle = _lock(path)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"port": port, "pid": os.getpid()}).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                owner = os.read(handle, 200).decode()
                os.close(handle)
                raise SessionError(
                    f"another run was started by the same launcher at the same time ({owner}): "
                    "start each with a launcher of its own, or one after the other"
                ) from None
        os.close(handle)
        time.sleep(_POLL_SECONDS)


def read(job: str, deadline: float) -> int:
    """Wait for the driver's port.

    Parameters
    ----------
    job : str
        What the ranks of this launch have in common.
    deadline : float
        On the monotonic clock.

    Returns
    -------
    int
        A port on 127.0.0.1.

    Raises
    ------
    TimeoutError
        If no living driver has written one.
    """
    path = private_folder(SessionError) / f"{job}.port"
    while time.monotonic() < deadline:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            time.sleep(_POLL_SECONDS)
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # its owner lives
            text = os.read(handle, 200)
            if text.endswith(b"}"):
                return int(json.loads(text)["port"])
        finally:
            os.close(handle)
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"no living process of rank 0 has written {path}")
