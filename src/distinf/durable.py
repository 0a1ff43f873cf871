"""A local Zarr store whose writes are on disk when they return."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore

__all__ = ["DurableStore", "sync"]


class DurableStore(LocalStore):  # type: ignore[misc]
    """Zarr's local store, which renames into place, with fsync behind it.

    Zarr alone is safe against a killed process, not against a lost node.
    """

    async def set(self, key: str, value: Any) -> None:
        """Write a key; return when it would survive a power failure."""
        await super().set(key, value)
        path = Path(self.root) / key
        await asyncio.to_thread(_sync_file, path)


def _sync_file(path: Path) -> None:
    sync(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Return when a file, or what a folder lists, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
