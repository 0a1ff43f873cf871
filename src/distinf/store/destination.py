"""Where a store lies, by its path or URL; folders, and writes to them that survive a lost node."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import filelock
from zarr.abc.store import Store
from zarr.storage import LocalStore

from distinf.errors import StoreError
from distinf.store.contents import CREATING, Content, Destination
from distinf.store.hold import HOLDER, LOCK, held_by, this_process


def find_destination(path: str | os.PathLike[str]) -> Destination:
    """Return the destination of a path or URL.

    Raises `StoreError` for the URL of a folder that does not begin at the root.
    """
    from distinf.store.object_store import ObjectStore  # fsspec, which a folder does not need

    text = os.fspath(path)
    scheme, found, rest = text.partition("://")
    if not found:
        return Folder(Path(text))
    if scheme.lower() not in ("file", "local"):
        return ObjectStore(text)
    if not rest.startswith("/"):  # a host by the standard, a folder of the working one to fsspec
        raise StoreError(
            f"parameters.output_path={text}: the URL of a folder begins with {scheme}:///; give "
            "a path to begin at the working folder"
        )
    return Folder(Path(rest))


class Folder(Destination):
    """A folder of a local or shared file system."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._lock: Any = None
        self._held: tuple[int, int] | None = None

    def content(self) -> Content:
        """Find out what lies there; a link that leads nowhere is foreign."""
        if not os.path.lexists(self.path):
            return Content.NOTHING
        return self._content(self.names()) if self.path.is_dir() else Content.FOREIGN

    def check_writable(self) -> None:
        """Refuse a place whose folder does not exist or takes no new folders."""
        parent, key = self.path.parent, f"parameters.output_path={self.path}"
        if not parent.is_dir():
            raise StoreError(f"{key}: the folder {parent} does not exist; make it first")
        if not self.path.exists():
            try:
                with tempfile.TemporaryDirectory(prefix=".distinf-", dir=parent):
                    pass
            except OSError as error:
                raise StoreError(
                    f"{key}: no folder can be made in {parent} ({error.strerror}); choose another "
                    "path"
                ) from error

    def hold(self) -> None:
        """Lock it; the operating system releases a dead run's lock."""
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

    def check_held(self) -> None:
        """Raise `StoreError` if its metadata or the lock of this run is gone."""
        if not (self.path / "zarr.json").exists() or self._held not in (None, self._lock_file()):
            raise StoreError("somebody removed or replaced it during the run")

    def open(self) -> Store:
        """Return it as a Zarr store that syncs."""
        return DurableStore(self.path)

    def free_bytes(self) -> int:
        """Bytes that fit on its disk if all that lies there is replaced."""
        replaced = sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())
        return shutil.disk_usage(self.path).free + replaced

    def names(self, folder: str = "") -> list[str]:
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
        """Write a file under another name, sync it and rename it."""
        write_durably(self.path / name, data)

    def remove(self, name: str) -> None:
        """Remove a file or a folder."""
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _end_creation(self) -> None:
        (self.path / CREATING).unlink()
        sync_folder(self.path)

    def _lock_file(self) -> tuple[int, int] | None:
        """Identify the lock file, so that another one in its place is noticed."""
        with contextlib.suppress(FileNotFoundError):
            found = (self.path / LOCK).stat()
            return found.st_dev, found.st_ino
        return None


class DurableStore(LocalStore):  # type: ignore[misc]
    """Zarr's local store with fsync: a write also survives a power failure."""

    async def set(self, key: str, value: Any) -> None:
        """Write a key; return when it would survive a power failure."""
        await self._ensure_open()
        await asyncio.to_thread(self.set_sync, key, value)

    def set_sync(self, key: str, value: Any) -> None:
        """Do as :meth:`set`; Zarr's codec pipelines without asyncio call it."""
        self._check_writable()
        write_durably(Path(self.root) / key, value.as_buffer_like())


def write_durably(path: Path, data: Any) -> None:
    """Write a whole file under another name and rename it; make its folders.

    It survives a power failure when this returns; before, the file's former content does.
    """
    changed = _make(path.parent)
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            replaces = path.exists()
            if replaces:
                os.fsync(file.fileno())
            beside.replace(path)
            if not replaces:  # one commit of the file system's journal instead of two
                os.fsync(file.fileno())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    for folder in (path.parent, *changed):
        sync_folder(folder)


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; return which folders now list a new one."""
    changed = list(itertools.takewhile(lambda above: not above.is_dir(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    return [new.parent for new in changed]


def sync_folder(folder: Path) -> None:
    """Return when what a folder lists would survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
