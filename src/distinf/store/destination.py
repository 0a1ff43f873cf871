"""Where a store lies: a folder, or an object store that fsspec knows, such as ``s3://``.

What may be replaced there, who holds it, and how much room it has.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from zarr.abc.store import Store

from distinf.errors import StoreError

__all__ = ["Destination", "find_destination"]


class Destination(Protocol):
    """A place for a store."""

    def there(self) -> bool:
        """Whether anything lies there."""
        ...

    def is_store(self) -> bool:
        """Whether what lies there is a store that distinf has made, its beginning, or nothing."""
        ...

    def is_created(self) -> bool:
        """Whether the store's metadata is whole."""
        ...

    def check(self) -> None:
        """Raise `StoreError` if nothing can be written there."""
        ...

    def check_replaceable(self) -> None:
        """Raise `StoreError` if somebody has put more there than distinf has."""
        ...

    def hold(self) -> None:
        """Keep other runs away; raises `StoreError` if one holds it already."""
        ...

    def release(self) -> None:
        """Let other runs in; idempotent."""
        ...

    def begin(self) -> None:
        """Take away what lies there, and note that a store is being created.

        Raises `StoreError` as `check_replaceable`.
        """
        ...

    def created(self) -> None:
        """Note that the store's metadata is whole."""
        ...

    def is_there(self) -> bool:
        """Whether the store that is being written is still there, as far as it costs nothing.

        Raises `StoreError` if another run may hold it by now.
        """
        ...

    def open(self) -> Store:
        """Return it as a Zarr store, whose writes are durable when they return."""
        ...

    def free(self) -> int | None:
        """Bytes that fit, what lies there being replaced; None if nobody knows."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names of the files in one of its folders; none if there is no such folder."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is a file of this name, such as ``t2m/c/0/0/0/0``."""
        ...

    def get(self, name: str) -> bytes:
        """Read a file of the store."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all; durable when it returns."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        ...


def find_destination(path: str | os.PathLike[str]) -> Destination:
    """Find out what kind of place a path or URL is.

    Raises
    ------
    StoreError
        If it is the URL of a folder, but not of one from the root on.
    """
    from distinf.store.folder import Folder
    from distinf.store.objects import Objects

    text = os.fspath(path)
    scheme, found, rest = text.partition("://")
    if not found:
        return Folder(Path(text))
    if scheme.lower() not in ("file", "local"):
        return Objects(text)
    if not rest.startswith("/"):  # a host by the standard, a folder of the working one to fsspec
        raise StoreError(
            f"parameters.output_path={text}: the URL of a folder begins with {scheme}:///; give "
            "a path to begin at the working folder"
        )
    return Folder(Path(rest))
