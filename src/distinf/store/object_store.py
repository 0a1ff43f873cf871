"""A store in an object store that fsspec knows, held and written under conditions.

The hold is an object that is written only if nobody else has changed it: S3's and Google's
conditional writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from zarr.abc.store import Store
from zarr.storage import FsspecStore

from distinf.errors import StoreError
from distinf.store.contents import CREATING, Content, Destination
from distinf.store.hold import HOLDER, LOCK, Changed, Conditional, ObjectHold, Seen

_PATTERN = "*?["  # fsspec and zarr remove all that a name with one of these matches


class ObjectStore(Destination):
    """A prefix of an object store, such as ``s3://bucket/forecast.zarr``.

    Credentials and endpoint come from the environment, as the file system's library takes them.
    """

    def __init__(self, url: str) -> None:
        self.name = url.rstrip("/")
        self._held: ObjectHold | None = None

    def content(self) -> Content:
        """Find out what lies there; a hold alone counts as nothing."""
        names = self._names()
        if names is None:
            return Content.FOREIGN
        if CREATING not in names and all(name.startswith(LOCK) for name in names):
            return Content.NOTHING
        return self._content(names)

    def check_writable(self) -> None:
        """Try with a small object whether a run can write there under conditions."""
        if any(sign in self.name for sign in _PATTERN):
            raise StoreError(
                f"parameters.output_path={self.name} has one of {' '.join(_PATTERN)} in it, which "
                "would stand for the names of other stores: choose another name"
            )
        name = self._path(f"{LOCK}.{uuid.uuid4().hex}")
        with self._reaching():
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

    def hold(self) -> None:
        """Put an object that says who holds it, and renew it until `release`."""
        hold = ObjectHold(self.name, self._path(HOLDER), self._conditional())
        with self._reaching():
            hold.take()
        self._held = hold

    def release(self) -> None:
        """Note in that object that nobody holds it."""
        if self._held is not None:
            with contextlib.suppress(Exception):  # a dead hold is recognized by its age
                self._held.release()

    def check_held(self) -> None:
        """Check the hold only: looking for the objects would cost one request per step."""
        if self._held is not None:
            self._held.check()

    def open(self) -> Store:
        """Return it as a Zarr store; an object is durable once its put is answered."""
        store = _HeldStore.from_url(self.name)
        store.check_held = self.check_held
        return store

    def free_bytes(self) -> None:
        """Return None: it is not known."""

    def names(self, folder: str = "") -> list[str]:
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
        self.check_held()
        self._fs.pipe_file(self._path(name), data)

    def remove(self, name: str) -> None:
        """Remove an object, or all below a prefix."""
        self.check_held()
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(name), recursive=True)

    @property
    def _fs(self) -> Any:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.name, use_listings_cache=False)[0]
        except (ValueError, ImportError) as error:
            raise StoreError(f"parameters.output_path={self.name}: {error}") from error

    def _end_creation(self) -> None:
        self._fs.rm_file(self._path(CREATING))

    def _path(self, name: str) -> str:
        return f"{self.name}/{name}"

    def _names(self, folder: str = "") -> list[str] | None:
        """Names below a prefix; None if it is an object."""
        fs = self._fs
        url = f"{self.name}/{folder}".rstrip("/")
        with self._reaching():
            try:
                found = fs.ls(url, detail=False, refresh=True)
            except FileNotFoundError:
                return []
        # By the full path: a child may be called as its parent. A folder's own marker ends in "/".
        above = str(fs._strip_protocol(url))
        if found == [above]:
            return None
        below = {str(path).removeprefix(f"{above}/").strip("/") for path in found}
        if any("/" in name for name in below):
            raise StoreError(f"{url} is listed under another name, {found[0]}: write it so")
        return sorted(name for name in below if name)

    def _conditional(self) -> Conditional:
        fs = self._fs
        store = conditional_writes(fs)
        if store is None:
            raise self._without_conditions(f"{type(fs).__name__} knows none")
        return store

    def _without_conditions(self, why: str) -> StoreError:
        return StoreError(
            f"parameters.output_path={self.name}: the store takes no conditional writes ({why}), "
            "so two runs could write there at once; write to a folder, s3:// or gs://"
        )

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Raise a `StoreError` with advice where the file system fails."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            advice = ""
            if self.name.startswith("s3://"):
                advice = (
                    ". Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile in ~/.aws, and "
                    "AWS_ENDPOINT_URL for a server other than Amazon's; the bucket must exist"
                )
            raise StoreError(
                f"parameters.output_path={self.name} cannot be written: {type(error).__name__}: "
                f"{error}{advice}"
            ) from error


class _HeldStore(FsspecStore):  # type: ignore[misc]
    """Zarr's store; it writes as long as this run holds the destination."""

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
        """Names below a prefix, without its own marker, into which Zarr would descend endlessly."""
        async for name in super().list_dir(prefix):
            if name:
                yield name


def conditional_writes(fs: Any) -> Conditional | None:
    """Find out how a file system of fsspec writes under a condition; None if it cannot."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if "s3" in protocols:
        return _S3(fs)
    return _Google(fs) if "gs" in protocols else None


def holds_conditions(store: Conditional, path: str) -> bool:
    """Try whether the server checks the conditions, or ignores them, on an object of our own."""
    first = store.put(path, b"1", None)
    second = store.put(path, b"2", first)
    return second != first and not any(_writes(store, path, old) for old in (None, first))


def _writes(store: Conditional, path: str, version: str | None) -> bool:
    with contextlib.suppress(Changed):
        store.put(path, b"3", version)
        return True
    return False


class _S3:
    """``If-None-Match: *`` and ``If-Match`` of PutObject (botocore >= 1.35.70)."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def put(self, path: str, data: bytes, version: str | None) -> str:
        bucket, key, _ = self._fs.split_path(path)
        match = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            put = self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **match)
        except FileNotFoundError as error:
            if version is None:  # no such bucket
                raise
            raise Changed from error
        except OSError as error:
            answer = getattr(error.__cause__, "response", {}).get("ResponseMetadata", {})
            if answer.get("HTTPStatusCode") in (409, 412):  # 409: another write is in progress
                raise Changed from error
            raise
        return str(put["ETag"])

    def read(self, path: str) -> Seen | None:
        from fsspec.asyn import sync

        bucket, key, _ = self._fs.split_path(path)
        try:
            got = self._fs.call_s3("get_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return None
        data = sync(self._fs.loop, got["Body"].read)
        now = parsedate_to_datetime(got["ResponseMetadata"]["HTTPHeaders"]["date"])
        return Seen(data, str(got["ETag"]), (now - got["LastModified"]).total_seconds())


class _Google:
    """``ifGenerationMatch`` of Google Cloud Storage's JSON interface."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def put(self, path: str, data: bytes, version: str | None) -> str:
        bucket, key, _ = self._fs.split_path(path)
        where = f"{self._fs._location}/upload/storage/v1/b/{quote(bucket)}/o"
        match = {"uploadType": "media", "name": key, "ifGenerationMatch": version or "0"}
        try:
            put = self._fs.call("POST", where, data=data, json_out=True, **match)
        except FileExistsError as error:
            raise Changed from error
        return str(put["generation"])

    def read(self, path: str) -> Seen | None:
        bucket, key, _ = self._fs.split_path(path)
        while True:
            try:
                headers, text = self._fs.call("GET", "b/{}/o/{}", bucket, key)
            except FileNotFoundError:
                return None
            about = json.loads(text)
            which = about["generation"]
            with contextlib.suppress(FileNotFoundError):  # another one has replaced it
                _, data = self._fs.call(
                    "GET", "b/{}/o/{}", bucket, key, alt="media", generation=which
                )
                now = parsedate_to_datetime(headers["Date"])
                age = now - datetime.fromisoformat(about["updated"])
                return Seen(data, str(which), age.total_seconds())
