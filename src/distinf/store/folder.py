"""A store in a folder of a local or shared file system."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import filelock
from zarr.abc.store import Store

from distinf.errors import StoreError
from distinf.store.durable import DurableStore, put, sync_folder
from distinf.store.holder import CONTENTS, CREATING, HOLDER, LOCK, held_by, this_process
from distinf.store.origin import check_replaceable, contents, is_made_by_distinf

__all__ = ["Folder"]


class Folder:
    """A folder of a local or shared file system.

    Parameters
    ----------
    path : Path
        The store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None
        self._held: tuple[int, int] | None = None

    def there(self) -> bool:
        """Whether anything lies there, even a link that leads nowhere."""
        return os.path.lexists(self.path)

    def is_store(self) -> bool:
        """Whether distinf has made it, or it is empty."""
        return self.path.is_dir() and is_made_by_distinf(self)

    def is_created(self) -> bool:
        """Whether the store's metadata is whole."""
        return (self.path / "zarr.json").exists() and not (self.path / CREATING).exists()

    def check(self) -> None:
        """Refuse a folder that does not exist."""
        parent = self.path.parent
        if not parent.is_dir():
            raise StoreError(
                f"parameters.output_path={self.path}: the folder {parent} does not exist; make it "
                "first"
            )

    def check_replaceable(self) -> None:
        """Refuse a folder in which somebody keeps files of his own."""
        check_replaceable(self, str(self.path))

    def hold(self) -> None:
        """Lock it; the operating system lets go of a dead run's lock."""
        self.path.mkdir(exist_ok=True)
        lock = filelock.FileLock(self.path / LOCK, timeout=0, thread_local=False)
        holder = self.path / HOLDER
        try:
            lock.acquire()
        except filelock.Timeout:
            who: dict[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):  # not written yet
                who = json.loads(holder.read_text())
            raise held_by(str(self.path), who) from None
        self._lock, self._held = lock, self._lock_file()
        holder.write_text(json.dumps(this_process()))

    def release(self) -> None:
        """Unlock it."""
        if self._lock is not None:
            self._lock.release()

    def begin(self) -> None:
        """Take away what lies there, but the lock; last what tells that distinf has made it."""
        self.check_replaceable()
        put(self.path / CREATING, b"")
        for name in sorted(self.names(""), key=lambda name: (name == "zarr.json", name)):
            if not name.startswith(LOCK):
                self.remove(name)

    def created(self) -> None:
        """Note that the store's metadata is whole."""
        put(self.path / CONTENTS, contents(self.names("")))
        (self.path / CREATING).unlink()
        sync_folder(self.path)

    def is_there(self) -> bool:
        """Whether its metadata is there, and the lock that this run has."""
        return (self.path / "zarr.json").exists() and self._held in (None, self._lock_file())

    def open(self) -> Store:
        """Return it as a Zarr store that syncs."""
        return DurableStore(self.path)

    def free(self) -> int:
        """Bytes that fit on its disk, what lies there being replaced."""
        replaced = sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())
        return shutil.disk_usage(self.path).free + replaced

    def names(self, folder: str) -> list[str]:
        """Names of the files in one of its folders."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(self.path / folder))
        return []

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.path / name).is_file()

    def get(self, name: str) -> bytes:
        """Read a file."""
        return (self.path / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        """Write a file beside its place, sync it and move it there."""
        put(self.path / name, data)

    def remove(self, name: str) -> None:
        """Remove a file or a folder."""
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _lock_file(self) -> tuple[int, int] | None:
        """Return what tells the lock file from one that has taken its place."""
        with contextlib.suppress(FileNotFoundError):
            found = (self.path / LOCK).stat()
            return found.st_dev, found.st_ino
        return None
