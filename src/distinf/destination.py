"""Where a store lies: a folder, or an object store that fsspec knows, such as ``s3://``.

What may be replaced there, who holds it, and how much room it has.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import filelock
from zarr.abc.store import Store

from distinf.errors import StoreError

__all__ = ["Destination", "Folder", "Objects", "find_destination"]

_LOCK = ".distinf.lock"
_HOLDER = _LOCK + ".json"
# There while a store is being created; after a kill in between, the next run begins anew.
_CREATING = _LOCK + ".creating"

# A holder of an object store says this often that it lives, and is given up after silence.
_BEAT_SECONDS = 20.0
_SILENCE_SECONDS = 90.0


class Destination(Protocol):
    """A place for a store."""

    def there(self) -> bool:
        """Whether anything lies there."""
        ...

    def is_store(self) -> bool:
        """Whether what lies there is a Zarr store, or the beginning of one."""
        ...

    def is_created(self) -> bool:
        """Whether the store's metadata is whole."""
        ...

    def check(self) -> None:
        """Raise `StoreError` if nothing can be written there."""
        ...

    def hold(self) -> None:
        """Keep other runs away; raises `StoreError` if one holds it already."""
        ...

    def release(self) -> None:
        """Let other runs in; idempotent."""
        ...

    def begin(self) -> None:
        """Take away what lies there, and note that a store is being created."""
        ...

    def created(self) -> None:
        """Note that the store's metadata is whole."""
        ...

    def is_there(self) -> bool:
        """Whether the store that is being written is still there, as far as it costs nothing."""
        ...

    def open(self) -> Store:
        """Return it as a Zarr store, whose writes are durable when they return."""
        ...

    def free(self) -> int | None:
        """Bytes that fit, what lies there being replaced; None if nobody knows."""
        ...


def find_destination(path: str | os.PathLike[str]) -> Destination:
    """Find out what kind of place a path or URL is."""
    text = os.fspath(path)
    return Objects(text) if "://" in text else Folder(Path(text))


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
            or (self.path / _CREATING).exists()
            or all(name.startswith(_LOCK) for name in os.listdir(self.path))
        )

    def is_created(self) -> bool:
        """Whether the store's metadata is whole."""
        return (self.path / "zarr.json").exists() and not (self.path / _CREATING).exists()

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
        lock = filelock.FileLock(self.path / _LOCK, timeout=0, thread_local=False)
        holder = self.path / _HOLDER
        try:
            lock.acquire()
        except filelock.Timeout:
            who: dict[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):  # not written yet
                who = json.loads(holder.read_text())
            raise _held(str(self.path), who) from None
        self._lock = lock
        holder.write_text(json.dumps(_me()))

    def release(self) -> None:
        """Unlock it."""
        if self._lock is not None:
            self._lock.release()

    def begin(self) -> None:
        """Take away what lies there, but the lock."""
        (self.path / _CREATING).touch()
        for entry in self.path.iterdir():
            if entry.name.startswith(_LOCK):
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def created(self) -> None:
        """Note that the store's metadata is whole."""
        (self.path / _CREATING).unlink()

    def is_there(self) -> bool:
        """Whether its metadata is there."""
        return (self.path / "zarr.json").exists()

    def open(self) -> Store:
        """Return it as a Zarr store that syncs."""
        from distinf.durable import DurableStore

        return DurableStore(self.path)

    def free(self) -> int:
        """Bytes that fit on its disk, what lies there being replaced."""
        replaced = sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())
        return shutil.disk_usage(self.path).free + replaced


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
        self._me = _me()
        self._held = False
        self._end = threading.Event()

    def there(self) -> bool:
        """Whether any object lies below the prefix."""
        return bool(self._names())

    def is_store(self) -> bool:
        """Whether it is a Zarr store, or the beginning of one."""
        names = self._names()
        return "zarr.json" in names or all(name.startswith(_LOCK) for name in names)

    def is_created(self) -> bool:
        """Whether the store's metadata is whole."""
        names = self._names()
        return "zarr.json" in names and _CREATING not in names

    def check(self) -> None:
        """Write and remove a small object, so that missing rights show before the run."""
        name = self._path(f"{_LOCK}.{self._token}")
        try:
            self._fs.pipe_file(name, b"")
            self._fs.rm_file(name)
        except Exception as error:
            raise self._unreachable(error) from error

    def hold(self) -> None:
        """Put an object that says who holds it, and keep it fresh until `release`."""
        path = self._path(_HOLDER)
        for _ in range(2):
            try:
                self._fs.pipe_file(path, self._beat(), mode="create")
                break
            except FileExistsError:
                who = self._holder()
                if not _is_dead(who):
                    raise _held(self.url, who) from None
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(path)
            except Exception as error:
                raise self._unreachable(error) from error
        else:
            raise _held(self.url, self._holder())
        self._held = True
        threading.Thread(target=self._keep_fresh, name="distinf-hold", daemon=True).start()

    def release(self) -> None:
        """Remove that object."""
        self._end.set()
        if self._held:
            self._held = False
            with contextlib.suppress(Exception):  # a dead hold is recognized by its age
                self._fs.rm_file(self._path(_HOLDER))

    def begin(self) -> None:
        """Remove all objects below the prefix, but the hold."""
        self._fs.pipe_file(self._path(_CREATING), b"")
        for name in self._names():
            if not name.startswith(_LOCK):
                self._fs.rm(self._path(name), recursive=True)

    def created(self) -> None:
        """Note that the store's metadata is whole."""
        self._fs.rm_file(self._path(_CREATING))

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

    @property
    def _fs(self) -> Any:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.url, use_listings_cache=False)[0]
        except (ValueError, ImportError) as error:
            raise StoreError(f"parameters.output_path={self.url}: {error}") from error

    def _path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _names(self) -> list[str]:
        try:
            found = self._fs.ls(self.url, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._unreachable(error) from error
        names = [str(path).rstrip("/").rpartition("/")[2] for path in found]
        return [name for name in names if name and name != self.url.rpartition("/")[2]]

    def _beat(self) -> bytes:
        return json.dumps({**self._me, "token": self._token, "beat": time.time()}).encode()

    def _holder(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            who: dict[str, Any] = json.loads(self._fs.cat_file(self._path(_HOLDER)))
            return who
        return {}

    def _keep_fresh(self) -> None:
        while not self._end.wait(_BEAT_SECONDS):
            with contextlib.suppress(Exception):  # the next beat tries again
                self._fs.pipe_file(self._path(_HOLDER), self._beat())

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


def _me() -> dict[str, Any]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _held(what: str, who: dict[str, Any]) -> StoreError:
    return StoreError(
        f"{what} is held by another run: host {who.get('host', '?')}, process "
        f"{who.get('pid', '?')}, since {who.get('since', '?')}"
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
