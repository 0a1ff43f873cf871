"""A store in an object store that fsspec knows."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from zarr.abc.store import Store
from zarr.storage import FsspecStore

from distinf.errors import StoreError
from distinf.store.conditional import Conditional, conditional_writes, holds_conditions
from distinf.store.hold import Hold
from distinf.store.holder import CONTENTS, CREATING, HOLDER, LOCK
from distinf.store.origin import check_replaceable, contents, is_made_by_distinf

__all__ = ["Objects"]

_PATTERN = "*?["  # fsspec and zarr remove all that a name with one of these matches


class Objects:
    """A prefix of an object store.

    Parameters
    ----------
    url : str
        Such as ``s3://bucket/forecast.zarr``; credentials and endpoint come from the environment,
        as the file system's own library takes them.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._held: Hold | None = None

    def there(self) -> bool:
        """Whether there is such an object, or any below the prefix but of a hold."""
        names = self._names()
        return (
            names is None or not all(name.startswith(LOCK) for name in names) or (CREATING in names)
        )

    def is_store(self) -> bool:
        """Whether distinf has made it, or there is nothing."""
        return self._names() is not None and is_made_by_distinf(self)

    def is_created(self) -> bool:
        """Whether the store's metadata is whole."""
        names = self.names("")
        return "zarr.json" in names and CREATING not in names

    def check(self) -> None:
        """Try on a small object whether a run can write there, and keep others away."""
        if any(sign in self.url for sign in _PATTERN):
            raise StoreError(
                f"parameters.output_path={self.url} has one of {' '.join(_PATTERN)} in it, which "
                "would stand for the names of other stores: choose another name"
            )
        name = self._path(f"{LOCK}.{uuid.uuid4().hex}")
        try:
            store = self._conditional()
            try:
                if not holds_conditions(store, name):
                    raise self._without_conditions("it ignores them")
            except OSError as error:
                self._fs.pipe_file(name, b"")  # so it is the condition
                raise self._without_conditions(f"{type(error).__name__}: {error}") from error
            finally:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(name)
        except StoreError:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def check_replaceable(self) -> None:
        """Refuse a prefix below which somebody keeps objects of his own."""
        check_replaceable(self, self.url)

    def hold(self) -> None:
        """Put an object that says who holds it, and keep it fresh until `release`."""
        hold = Hold(self.url, self._path(HOLDER), self._conditional())
        try:
            hold.take()
        except StoreError:
            raise
        except Exception as error:
            raise self._unreachable(error) from error
        self._held = hold

    def release(self) -> None:
        """Note in that object that nobody holds it."""
        if self._held is not None:
            with contextlib.suppress(Exception):  # a dead hold is recognized by its age
                self._held.release()

    def begin(self) -> None:
        """Remove all below the prefix but the hold; last what tells that distinf has made it."""
        self.check_replaceable()
        self.put(CREATING, b"")
        for name in sorted(self.names(""), key=lambda name: (name == "zarr.json", name)):
            if not name.startswith(LOCK):
                self.remove(name)
        left = [name for name in self.names("") if not name.startswith(LOCK)]
        if left:  # a bulk removal tells no errors
            raise StoreError(f"{self.url}/{left[0]} could not be removed: may you delete objects?")

    def created(self) -> None:
        """Note that the store's metadata is whole."""
        self.put(CONTENTS, contents(self.names("")))
        self._fs.rm_file(self._path(CREATING))

    def is_there(self) -> bool:
        """Whether this run still holds it; the objects would cost a request for every step."""
        self._check_held()
        return True

    def open(self) -> Store:
        """Return it as a Zarr store; an object is durable once its put is answered."""
        store = _HeldStore.from_url(self.url)
        store.check_held = self._check_held
        return store

    def free(self) -> None:
        """Nobody knows."""

    def names(self, folder: str) -> list[str]:
        """Names of the objects below a prefix."""
        return self._names(folder) or []

    def has(self, name: str) -> bool:
        """Whether there is an object of this name."""
        return bool(self._fs.isfile(self._path(name)))

    def get(self, name: str) -> bytes:
        """Read an object."""
        data: bytes = self._fs.cat_file(self._path(name))
        return data

    def put(self, name: str, data: bytes) -> None:
        """Put an object; it is durable once that is answered."""
        self._check_held()
        self._fs.pipe_file(self._path(name), data)

    def remove(self, name: str) -> None:
        """Remove an object, or all below a prefix."""
        self._check_held()
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(name), recursive=True)

    @property
    def _fs(self) -> Any:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.url, use_listings_cache=False)[0]
        except (ValueError, ImportError) as error:
            raise StoreError(f"parameters.output_path={self.url}: {error}") from error

    def _path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _names(self, folder: str = "") -> list[str] | None:
        """Names below a prefix; None if it is an object."""
        fs = self._fs
        url = f"{self.url}/{folder}".rstrip("/")
        try:
            found = fs.ls(url, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._unreachable(error) from error
        # By the full path: a child may be called as its parent. A folder's own marker ends in "/".
        above = str(fs._strip_protocol(url))
        if found == [above]:
            return None
        below = {str(path).removeprefix(f"{above}/").strip("/") for path in found}
        if any("/" in name for name in below):
            raise StoreError(f"{url} is listed under another name, {found[0]}: write it so")
        return sorted(name for name in below if name)

    def _check_held(self) -> None:
        if self._held is not None:
            self._held.check()

    def _conditional(self) -> Conditional:
        fs = self._fs
        store = conditional_writes(fs)
        if store is None:
            raise self._without_conditions(f"{type(fs).__name__} knows none")
        return store

    def _without_conditions(self, why: str) -> StoreError:
        return StoreError(
            f"parameters.output_path={self.url}: the store takes no conditional writes ({why}), "
            "so two runs could write there at once; write to a folder, s3:// or gs://"
        )

    def _unreachable(self, error: Exception) -> StoreError:
        advice = ""
        if self.url.startswith("s3://"):
            advice = (
                ". Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile in ~/.aws, and "
                "AWS_ENDPOINT_URL for a server other than Amazon's; the bucket must exist"
            )
        return StoreError(
            f"parameters.output_path={self.url} cannot be written: {type(error).__name__}: "
            f"{error}{advice}"
        )


class _HeldStore(FsspecStore):  # type: ignore[misc]
    """Zarr's store; it writes as long as this run holds the place."""

    check_held: Callable[[], None] = staticmethod(lambda: None)

    def with_read_only(self, read_only: bool = False) -> _HeldStore:
        """Return the same under the same hold."""
        other: _HeldStore = super().with_read_only(read_only)
        other.check_held = self.check_held
        return other

    async def set(self, key: str, value: Any, byte_range: tuple[int, int] | None = None) -> None:
        """Write a key."""
        await asyncio.to_thread(self.check_held)
        await super().set(key, value, byte_range)

    async def delete(self, key: str) -> None:
        """Remove a key."""
        await asyncio.to_thread(self.check_held)
        await super().delete(key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names below a prefix, without its own marker, into which Zarr would descend for ever."""
        async for name in super().list_dir(prefix):
            if name:
                yield name
