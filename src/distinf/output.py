"""The forecast store: its schema, what is complete in it, and writing to it.

One Zarr v3 group: a float32 array for each variable, one chunk a (time, lead_time), fill value
NaN; and for each diagnostic an array ``<diagnostic>_complete`` (time, lead_time) that says which
steps are there. A step is marked after its data is on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import numpy as np
import torch
import zarr

from distinf.durable import DurableStore
from distinf.errors import DistinfError, Interrupted, StoreError
from distinf.options import Output
from distinf.progress import Events
from distinf.schema import check_clashes, create, mark, mismatches, shape

__all__ = ["ForecastStore", "check_output"]

Coords = OrderedDict[str, np.ndarray]

_LOCK = ".distinf.lock"
# There while a store is being created; after a kill in between, the next run begins anew.
_CREATING = _LOCK + ".creating"


def check_output(path: str | os.PathLike[str], mode: str) -> None:
    """Refuse an output path that this mode must not touch.

    Parameters
    ----------
    path : str | os.PathLike[str]
        ``parameters.output_path``.
    mode : str
        ``output.mode``.

    Raises
    ------
    StoreError
        If something is there that may not be replaced or is no store; names the choices.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise StoreError(
            f"parameters.output_path={path}: the folder {path.parent} does not exist; make it first"
        )
    if not path.exists():
        return
    is_store = path.is_dir() and (
        (path / "zarr.json").exists()
        or (path / _CREATING).exists()
        or all(name.startswith(_LOCK) for name in os.listdir(path))
    )
    if mode == "create":
        raise StoreError(
            f"parameters.output_path={path} exists already. Choose another path, "
            "output.mode=resume to continue it, or output.mode=overwrite to replace it"
        )
    if not is_store:
        raise StoreError(
            f"parameters.output_path={path} is no Zarr store, so output.mode={mode} does not "
            "touch it; choose another path"
        )


class ForecastStore:
    """A forecast's results on disk.

    Parameters
    ----------
    path : str | os.PathLike[str]
        The store, usually ``something.zarr``.
    times : np.ndarray
        Initial times, datetime64[ns].
    lead_times : np.ndarray
        Lead times, timedelta64[ns].
    diagnostics : Mapping[str, Coords]
        For each diagnostic its output coords, ``variable`` and grid among them.
    attributes : Mapping[str, Mapping[str, str]]
        ``units`` and ``long_name`` of variables.
    output : Output, optional
        How.
    config : Mapping[str, Any], optional
        The resolved config, kept in the store; what decides the bytes must be the same when a
        store is resumed.
    versions : Mapping[str, str], optional
        Versions, kept in the store.
    events : Events | None, optional
        Where writes are recorded.
    pending : int, optional
        Results that may wait to be written, by default 8: further ones hold up `write`.

    Raises
    ------
    StoreError
        If the store exists and may not be touched, does not match, or another run holds it.
    ConfigError
        If two diagnostics make the same variable.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        times: np.ndarray,
        lead_times: np.ndarray,
        diagnostics: Mapping[str, Coords],
        attributes: Mapping[str, Mapping[str, str]],
        output: Output | None = None,
        config: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        events: Events | None = None,
        pending: int = 8,
    ) -> None:
        output = output or Output()
        self.path = Path(path)
        self._times = times
        self._lead_times = lead_times
        self._diagnostics = dict(diagnostics)
        self._events = events
        check_output(self.path, output.mode)
        check_clashes(diagnostics)
        self._hold()
        try:
            creating = self.path / _CREATING
            exists = (self.path / "zarr.json").exists() and not creating.exists()
            if output.mode == "resume" and exists:
                self._check_same(config or {})
            else:
                creating.touch()
                self._clear()
                create(
                    self.path,
                    times,
                    lead_times,
                    self._diagnostics,
                    attributes,
                    config or {},
                    versions or {},
                )
                creating.unlink()
            self._group = zarr.open_group(
                DurableStore(self.path), mode="r+", use_consolidated=False
            )
            self._complete = {
                name: np.asarray(self._group[mark(name)][:]) for name in self._diagnostics
            }
        except BaseException:
            self._lock.release()
            raise
        self._slots = threading.BoundedSemaphore(pending)
        self._writers = ThreadPoolExecutor(output.writers, thread_name_prefix="distinf-write")
        self._error: BaseException | None = None
        self._closed = False

    def is_complete(self, diagnostic: str, time: np.datetime64, lead_time: np.timedelta64) -> bool:
        """Whether this step of a diagnostic is in the store."""
        i, j = self._where(time, lead_time)
        return bool(self._complete[diagnostic][i, j])

    @property
    def counts(self) -> tuple[int, int]:
        """How many tasks are complete, and how many there are."""
        marks = self._complete.values()
        return int(sum(m.sum() for m in marks)), int(sum(m.size for m in marks))

    def write(self, diagnostic: str, future: Future[tuple[torch.Tensor, Coords]]) -> None:
        """Write the result of a task when it is there; returns at once unless too many wait.

        Parameters
        ----------
        diagnostic : str
            Which diagnostic it is of.
        future : Future[tuple[torch.Tensor, Coords]]
            Of `DistributedInference.submit`.

        Raises
        ------
        Exception
            The first error of any earlier task or write.
        """
        while not self._slots.acquire(timeout=0.2):
            self.check()
        if self._error is not None:
            self._slots.release()
            raise self._error
        future.add_done_callback(lambda done: self._take(diagnostic, done))

    def check(self) -> None:
        """Raise the first error of any task or write so far."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Wait until every result is written, then let the store go; idempotent.

        Raises
        ------
        Exception
            The first error of any task or write.
        """
        self._close(wait=True)
        self.check()

    def __enter__(self) -> ForecastStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        # After an error of a model what is in flight still arrives; after Ctrl-C it does not.
        self._close(wait=isinstance(error, DistinfError) and not isinstance(error, Interrupted))
        done, total = self.counts
        error.add_note(
            f"{done} of {total} tasks are complete in {self.path}; the same command with "
            "output.mode=resume continues from there"
        )

    def _close(self, wait: bool) -> None:
        if self._closed:
            return
        if wait:
            self._wait_for_all()
        self._closed = True
        self._writers.shutdown(wait=True)
        self._lock.release()

    def _wait_for_all(self) -> None:
        taken = 0
        limit = self._slots._initial_value  # type: ignore[attr-defined]
        while taken < limit:
            taken += self._slots.acquire(timeout=1.0)
        for _ in range(taken):
            self._slots.release()

    def _take(self, diagnostic: str, future: Future[tuple[torch.Tensor, Coords]]) -> None:
        try:
            self._writers.submit(self._write, diagnostic, future)
        except RuntimeError:  # closed while this task was being computed
            self._slots.release()

    def _write(self, diagnostic: str, future: Future[tuple[torch.Tensor, Coords]]) -> None:
        try:
            x, coords = future.result()
            self._put(diagnostic, x, coords)
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._slots.release()

    def _put(self, diagnostic: str, x: torch.Tensor, coords: Coords) -> None:
        """Write one result [time=1, lead_time=1, ...] and mark it complete."""
        expected = self._diagnostics[diagnostic]
        task = f"{diagnostic}{_step(coords)}"
        sizes = (1, 1, *shape(expected)[2:])
        if list(coords) != list(expected) or tuple(x.shape) != sizes:
            raise StoreError(
                f"{task}: the result has dimensions {dict(zip(coords, x.shape, strict=False))}, "
                f"the store {dict(zip(expected, sizes, strict=False))}"
            )
        try:
            where = self._where(coords["time"][0], coords["lead_time"][0])
            data = x.to("cpu", torch.float32).numpy()
            axis = list(expected).index("variable")
            with _timed(self._events, task, data.nbytes):
                for i, name in enumerate(expected["variable"]):
                    self._group[str(name)][where] = data.take(i, axis=axis)[0, 0]
                self._group[mark(diagnostic)][where] = True
        except Exception as error:
            raise StoreError(
                f"{task} could not be written to {self.path}: {type(error).__name__}: {error}"
            ) from error
        self._complete[diagnostic][where] = True

    def _where(self, time: np.datetime64, lead_time: np.timedelta64) -> tuple[int, int]:
        i = np.flatnonzero(self._times == time)
        j = np.flatnonzero(self._lead_times == lead_time)
        if i.size != 1 or j.size != 1:
            raise StoreError(f"no place for time {time}, lead time {lead_time} in {self.path}")
        return int(i[0]), int(j[0])

    def _hold(self) -> None:
        self.path.mkdir(exist_ok=True)
        self._lock = filelock.FileLock(self.path / _LOCK, timeout=0, thread_local=False)
        holder = self.path / (_LOCK + ".json")
        try:
            self._lock.acquire()
        except filelock.Timeout:
            who: dict[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):  # not written yet
                who = json.loads(holder.read_text())
            raise StoreError(
                f"{self.path} is held by another run: host {who.get('host', '?')}, process "
                f"{who.get('pid', '?')}, since {who.get('since', '?')}"
            ) from None
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder.write_text(
            json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since})
        )

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry.name.startswith(_LOCK):
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _check_same(self, config: Mapping[str, Any]) -> None:
        problems = mismatches(self.path, self._times, self._lead_times, self._diagnostics, config)
        if problems:
            raise StoreError(
                f"{self.path} cannot be resumed by this run, which would make other results. "
                + "; ".join(problems)
            )


def _step(coords: Coords) -> str:
    """Say which step a result is of, as far as it tells."""
    words = [""]
    for time in coords.get("time", ())[:1]:
        words.append(str(np.datetime_as_string(time, "m")))
    for lead_time in coords.get("lead_time", ())[:1]:
        words.append(f"+{lead_time / np.timedelta64(1, 'h'):g} h")
    return " ".join(words)


@contextlib.contextmanager
def _timed(events: Events | None, task: str, nbytes: int) -> Iterator[None]:
    if events is None:
        yield
        return
    with events.timed("write", task, 0, nbytes):
        yield
