"""Objects that are written only if nobody else has changed them: S3's and Google's conditions."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import quote

__all__ = ["Changed", "Conditional", "Seen", "conditional_writes", "holds_conditions"]


class Changed(Exception):
    """The object is not as the writer saw it."""


@dataclass(frozen=True)
class Seen:
    """An object as it was read.

    Parameters
    ----------
    data : bytes
        What it holds.
    version : str
        What tells it from what it held before.
    age : float
        Seconds since it was written, by the store's own clock.
    """

    data: bytes
    version: str
    age: float


class Conditional(Protocol):
    """A store that writes under a condition, checking it and writing in one step."""

    def put(self, path: str, data: bytes, version: str | None) -> str:
        """Write an object of this version, or one that is not there (None); return its version.

        Raises
        ------
        Changed
            If it is not so; nothing is written.
        """
        ...

    def read(self, path: str) -> Seen | None:
        """Read an object; None if there is none."""
        ...


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
            if answer.get("HTTPStatusCode") in (409, 412):  # 409: another write is on its way
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
            with contextlib.suppress(FileNotFoundError):  # another one has taken its place
                _, data = self._fs.call(
                    "GET", "b/{}/o/{}", bucket, key, alt="media", generation=which
                )
                age = parsedate_to_datetime(headers["Date"]) - datetime.fromisoformat(
                    about["updated"]
                )
                return Seen(data, str(which), age.total_seconds())
