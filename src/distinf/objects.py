"""A store in an object store that fsspec knows."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from typing import Any

from zarr.abc.store import Store

from distinf.errors import StoreError
from distinf.holder import CREATING, HOLDER, LOCK, held_by, this_process

__all__ = ["Objects"]

# A holder says this often that it lives, and is given up after silence.
_BEAT_SECONDS = 20.0
_SILENCE_SECONDS = 90.0


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
        self._token = uuid.uuid4().hex
        self._me = this_process()
        self._held = False
        self._end = threading.Event()

    def there(self) -> bool:
        """Whether any object lies below the prefix."""
        return bool(self._names())

    def is_store(self) -> bool:
        """Whether it is a Zarr store, or the beginning of one."""
        names = self._names()
        return "zarr.json" in names or all(name.startswith(LOCK) for name in names)

    def is_created(self) -> bool:
        """Whether the store's metadata is whole."""
        names = self._names()
        return "zarr.json" in names and CREATING not in names

    def check(self) -> None:
        """Write and remove a small object, so that missing rights show before the run."""
        name = self._path(f"{LOCK}.{self._token}")
        try:
            self._fs.pipe_file(name, b"")
            self._fs.rm_file(name)
        except Exception as error:
            raise self._unreachable(error) from error

    def hold(self) -> None:
        """Put an object that says who holds it, and keep it fresh until `release`."""
        path = self._path(HOLDER)
        for _ in range(2):
            try:
                self._fs.pipe_file(path, self._beat(), mode="create")
                break
            except FileExistsError:
                who = self._holder()
                if not _is_dead(who):
                    raise held_by(self.url, who) from None
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(path)
            except Exception as error:
                raise self._unreachable(error) from error
        else:
            raise held_by(self.url, self._holder())
        self._held = True
        threading.Thread(target=self._keep_fresh, name="distinf-hold", daemon=True).start()

    def release(self) -> None:
        """Remove that object."""
        self._end.set()
        if self._held:
            self._held = False
            with contextlib.suppress(Exception):  # a dead hold is recognized by its age
                self._fs.rm_file(self._path(HOLDER))

    def begin(self) -> None:
        """Remove all objects below the prefix, but the hold."""
        self._fs.pipe_file(self._path(CREATING), b"")
        for name in self._names():
            if not name.startswith(LOCK):
                self._fs.rm(self._path(name), recursive=True)

    def created(self) -> None:
        """Note that the store's metadata is whole."""
        self._fs.rm_file(self._path(CREATING))

    def is_there(self) -> bool:
        """Nobody asks: it would cost a request for every step."""
        return True

    def open(self) -> Store:
        """Return it as a Zarr store; an object is durable once its put is answered."""
        from zarr.storage import FsspecStore

        store: Store = FsspecStore.from_url(self.url)
        return store

    def free(self) -> None:
        """Nobody knows."""

    def names(self, folder: str) -> list[str]:
        """Names of the objects below a prefix."""
        return self._names(folder)

    def has(self, name: str) -> bool:
        """Whether there is an object of this name."""
        return bool(self._fs.exists(self._path(name)))

    def get(self, name: str) -> bytes:
        """Read an object."""
        data: bytes = self._fs.cat_file(self._path(name))
        return data

    def put(self, name: str, data: bytes) -> None:
        """Put an object; it is durable once that is answered."""
        self._fs.pipe_file(self._path(name), data)

    def remove(self, name: str) -> None:
        """Remove an object, or all below a prefix."""
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

    def _names(self, folder: str = "") -> list[str]:
        url = f"{self.url}/{folder}".rstrip("/")
        try:
            found = self._fs.ls(url, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._unreachable(error) from error
        names = [str(path).rstrip("/").rpartition("/")[2] for path in found]
        return [name for name in names if name and name != url.rpartition("/")[2]]

    def _beat(self) -> bytes:
        return json.dumps({**self._me, "token": self._token, "beat": time.time()}).encode()

    def _holder(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            who: dict[str, Any] = json.loads(self._fs.cat_file(self._path(HOLDER)))
            return who
        return {}

    def _keep_fresh(self) -> None:
        while not self._end.wait(_BEAT_SECONDS):
            with contextlib.suppress(Exception):  # the next beat tries again
                self._fs.pipe_file(self._path(HOLDER), self._beat())

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


def _is_dead(who: dict[str, Any]) -> bool:
    if who.get("host") == socket.gethostname() and isinstance(who.get("pid"), int):
        try:
            os.kill(who["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    beat = who.get("beat")
    return not isinstance(beat, int | float) or time.time() - beat > _SILENCE_SECONDS
