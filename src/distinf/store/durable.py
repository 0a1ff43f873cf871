"""A local Zarr store whose writes are on disk when they return."""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore

__all__ = ["DurableStore", "put", "sync_folder"]


class DurableStore(LocalStore):  # type: ignore[misc]
    """Zarr's local store with fsync.

    Zarr alone is safe against a killed process, not against a lost node.
    """

    async def set(self, key: str, value: Any) -> None:
        """Write a key; return when it would survive a power failure."""
        await self._ensure_open()
        await asyncio.to_thread(self.set_sync, key, value)

    def set_sync(self, key: str, value: Any) -> None:
        """Do as :meth:`set`; Zarr's codec pipelines without asyncio call it."""
        self._check_writable()
        put(Path(self.root) / key, value.as_buffer_like())


def put(path: Path, data: Any) -> None:
    """Write a whole file beside its place and move it there; make its folders.

    Returns when it would survive a power failure. Whenever that happens before, what the file held
    is still there.

    Parameters
    ----------
    path : Path
        The file.
    data : bytes-like
        What it shall hold.
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
