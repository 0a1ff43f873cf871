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

from distinf.durable import DurableStore, put
from distinf.errors import StoreError
from distinf.holder import CREATING, HOLDER, LOCK, held_by, this_process

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

    def there(self) -> bool:
        """Whether anything lies there."""
        return self.path.exists()

    def is_store(self) -> bool:
        """Whether it is a Zarr store, or the beginning of one."""
        return self.path.is_dir() and (
            (self.path / "zarr.json").exists()
            or (self.path / CREATING).exists()
            or all(name.startswith(LOCK) for name in os.listdir(self.path))
        )

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
        self._lock = lock
        holder.write_text(json.dumps(this_process()))

    def release(self) -> None:
        """Unlock it."""
        if self._lock is not None:
            self._lock.release()

    def begin(self) -> None:
        """Take away what lies there, but the lock."""
        (self.path / CREATING).touch()
        for entry in self.path.iterdir():
            if entry.name.startswith(LOCK):
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def created(self) -> None:
        """Note that the store's metadata is whole."""
        (self.path / CREATING).unlink()

    def is_there(self) -> bool:
        """Whether its metadata is there."""
        return (self.path / "zarr.json").exists()

    def open(self) -> Store:
        """Return it as a Zarr store that syncs."""
        return DurableStore(self.path)

    def free(self) -> int:
        """Bytes that fit on its disk, what lies there being replaced."""
        replaced = sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())
        return shutil.disk_usage(self.path).free + replaced

    def names(self, folder: str) -> list[str]:
        """Names of the files in one of its folders."""
        with contextlib.suppress(FileNotFoundError):
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
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
