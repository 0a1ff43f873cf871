"""The forecast store: its schema, what is complete in it, and writing to it.

One Zarr v3 group: a float32 array for each variable, one chunk a (time, lead_time), fill value
NaN; and for each diagnostic an array ``<diagnostic>_complete`` (time, lead_time) that says which
steps are there. A step is marked after its data is on disk. An ensemble's arrays have a first
dimension ``ensemble``.
"""

from __future__ import annotations

import os
import threading
import time as clock
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch
import zarr

from distinf.destination import find_destination
from distinf.errors import DistinfError, Interrupted, StoreError, TaskError, TaskLost
from distinf.options import Output
from distinf.progress import Event, Events
from distinf.schema import check_clashes, create, extend, mark, mismatches, shape, step_bytes

__all__ = ["ForecastStore", "check_output"]

Coords = OrderedDict[str, np.ndarray]
Result = tuple[torch.Tensor, Coords]
# A file of a diagnostic: its name, where it is in the leading dimensions, its first lead time.
File = tuple[str, tuple[int, ...], int]


def check_output(path: str | os.PathLike[str], mode: str) -> None:
    """Refuse an output path that this mode must not touch.

    Parameters
    ----------
    path : str | os.PathLike[str]
        ``parameters.output_path``, a path or a URL.
    mode : str
        ``output.mode``.

    Raises
    ------
    StoreError
        If something is there that may not be replaced or is no store; names the choices. If
        nothing can be written there.
    """
    destination = find_destination(path)
    destination.check()
    if not destination.there():
        return
    if mode == "create":
        raise StoreError(
            f"parameters.output_path={path} exists already. Choose another path, "
            "output.mode=resume to continue it, or output.mode=overwrite to replace it"
        )
    if not destination.is_store():
        raise StoreError(
            f"parameters.output_path={path} is no Zarr store, so output.mode={mode} does not "
            "touch it; choose another path"
        )


class ForecastStore:
    """A forecast's results in a Zarr store.

    Parameters
    ----------
    path : str | os.PathLike[str]
        The store, usually ``something.zarr``, or a URL such as ``s3://bucket/something.zarr``.
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
    ensemble : np.ndarray | None, optional
        Numbers of the members, by default None: no dimension ``ensemble``.
    skip_errors : bool, optional
        Whether a task that failed is left out and listed in ``skipped``, by default False: its
        error is raised.

    Attributes
    ----------
    skipped : list[str]
        The tasks that were left out, and why.

    Raises
    ------
    StoreError
        If the store exists and may not be touched, does not match, does not fit, or another run
        holds it.
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
        ensemble: np.ndarray | None = None,
        skip_errors: bool = False,
    ) -> None:
        output = output or Output()
        self.skipped: list[str] = []
        self._skip_errors = skip_errors
        self.path = os.fspath(path)
        self._axes: Coords = OrderedDict(time=times, lead_time=lead_times)
        if ensemble is not None:
            self._axes["ensemble"] = ensemble
            self._axes.move_to_end("ensemble", last=False)
        self._diagnostics = dict(diagnostics)
        self._events = events
        check_output(path, output.mode)
        check_clashes(diagnostics)
        self._destination = find_destination(path)
        self._destination.hold()
        try:
            store = self._destination.open()
            if output.mode == "resume" and self._destination.is_created():
                self._check_same(store, config or {})
                extend(store, self._axes, self._diagnostics, config or {})
            else:
                if output.check_space:
                    self._check_space(sum(map(self._size, self._diagnostics)))
                self._destination.begin()
                create(
                    store,
                    self._axes,
                    self._diagnostics,
                    attributes,
                    config or {},
                    versions or {},
                    output.shards,
                )
                self._destination.created()
            self._group = zarr.open_group(store, mode="r+", use_consolidated=False)
            # Lead times in one file.
            self._leads = self._group[mark(next(iter(self._diagnostics)))].chunks[-1]
            self._complete = {
                name: np.asarray(self._group[mark(name)][:]) for name in self._diagnostics
            }
        except BaseException:
            self._destination.release()
            raise
        self._waiting: dict[File, dict[int, list[np.ndarray]]] = {}
        self._turn = threading.Lock()
        self._slots = threading.BoundedSemaphore(pending)
        self._writers = ThreadPoolExecutor(output.writers, thread_name_prefix="distinf-write")
        self._error: BaseException | None = None
        self._closed = False

    def is_complete(
        self,
        diagnostic: str,
        time: np.datetime64,
        lead_time: np.timedelta64,
        member: int | None = None,
    ) -> bool:
        """Whether this step of a diagnostic is in the store."""
        where = OrderedDict(ensemble=[member], time=[time], lead_time=[lead_time])
        return bool(self._complete[diagnostic][self._where(diagnostic, where)])

    def lacking(self, coords: Mapping[str, Any]) -> list[str]:
        """Diagnostics whose result for a state with these coords is to be stored, and is not."""
        if coords["lead_time"][-1] not in self._axes["lead_time"]:
            return []
        where = {**coords, "lead_time": coords["lead_time"][-1:]}
        return [n for n, done in self._complete.items() if not done[self._where(n, where)]]

    def last_incomplete(self, times: np.ndarray, members: np.ndarray | None) -> int | None:
        """Index of the last lead time that any of these forecasts lacks; None if none does."""
        done = np.logical_and.reduce(list(self._complete.values()))
        axes = [times] if members is None else [members, times]
        names = [name for name in self._axes if name != "lead_time"]
        where = [np.isin(self._axes[name], own) for name, own in zip(names, axes, strict=True)]
        lacking = np.flatnonzero(~done[np.ix_(*where)].reshape(-1, done.shape[-1]).all(axis=0))
        return int(lacking[-1]) if len(lacking) else None

    @property
    def counts(self) -> tuple[int, int]:
        """How many tasks are complete, and how many there are."""
        marks = self._complete.values()
        return int(sum(m.sum() for m in marks)), int(sum(m.size for m in marks))

    def write(self, diagnostic: str, future: Future[Any]) -> None:
        """Write the result of a task when it is there; returns at once unless too many wait.

        Parameters
        ----------
        diagnostic : str
            Which diagnostic it is of.
        future : Future
            Of `DistributedInference.submit`: a tensor and its coords, or of a `Chain` a mapping
            from diagnostics to these.

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
        for file, rows in self._waiting.items():  # files that lack some lead times
            try:
                self._put(file, rows)
            except StoreError as error:
                self._error = self._error or error
        self._waiting.clear()
        self._destination.release()

    def _wait_for_all(self) -> None:
        taken = 0
        limit = self._slots._initial_value  # type: ignore[attr-defined]
        while taken < limit:
            taken += self._slots.acquire(timeout=1.0)
        for _ in range(taken):
            self._slots.release()

    def _take(self, diagnostic: str, future: Future[Any]) -> None:
        try:
            self._writers.submit(self._write, diagnostic, future)
        except RuntimeError:  # closed while this task was being computed
            self._slots.release()

    def _write(self, diagnostic: str, future: Future[Any]) -> None:
        try:
            result = future.result()
            if isinstance(result, Mapping):
                result = result[diagnostic]
            file, lead, rows = self._rows(diagnostic, *result)
            with self._turn:
                waiting = self._waiting.setdefault(file, {})
                waiting[lead] = rows
                whole = len(waiting) == self._lacking(file)
                if whole:
                    del self._waiting[file]
            if whole:
                self._put(file, waiting)
        except (TaskError, TaskLost) as error:
            if not self._skip_errors:
                self._error = self._error or error
            else:
                with self._turn:
                    self.skipped.append(f"{diagnostic}: {error}")
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._slots.release()

    def _rows(
        self, diagnostic: str, x: torch.Tensor, coords: Coords
    ) -> tuple[File, int, list[np.ndarray]]:
        """Take a result [(ensemble=1,) time=1, lead_time=1, ...] apart into its variables."""
        expected = self._diagnostics[diagnostic]
        leading = len(self._axes)
        sizes = (*(1,) * leading, *shape(expected)[leading:])
        if list(coords) != list(expected) or tuple(x.shape) != sizes:
            raise StoreError(
                f"{diagnostic}{_step(coords)}: the result has dimensions "
                f"{dict(zip(coords, x.shape, strict=False))}, "
                f"the store {dict(zip(expected, sizes, strict=False))}"
            )
        *where, lead = self._where(diagnostic, coords)
        data = x.to("cpu", torch.float32).numpy()
        axis = list(expected).index("variable")
        rows = [data.take(i, axis)[(0,) * leading] for i in range(len(expected["variable"]))]
        return (diagnostic, tuple(where), lead - lead % self._leads), lead, rows

    def _lacking(self, file: File) -> int:
        """How many lead times of a file were not in the store when this run began or since."""
        diagnostic, where, first = file
        done = self._complete[diagnostic][where][first : first + self._leads]
        return int(done.size - done.sum())

    def _put(self, file: File, rows: dict[int, list[np.ndarray]]) -> None:
        """Write one file of each variable and mark its lead times complete."""
        diagnostic, where, first = file
        leads = sorted(rows)
        start = clock.time()
        whole = slice(first, min(first + self._leads, len(self._axes["lead_time"])))
        try:
            for i, name in enumerate(self._diagnostics[diagnostic]["variable"]):
                array = self._group[str(name)]
                if self._leads == 1:
                    array[(*where, first)] = rows[first][i]
                    continue
                values = np.asarray(array[(*where, whole)])  # what earlier runs wrote stays
                for lead in leads:
                    values[lead - first] = rows[lead][i]
                array[(*where, whole)] = values
            done = self._complete[diagnostic][where][whole].copy()
            done[[lead - first for lead in leads]] = True
            self._group[mark(diagnostic)][(*where, whole)] = done
            if not self._destination.is_there():
                raise StoreError("somebody removed or replaced it during the run")
        except Exception as error:
            task = OrderedDict(
                (key, values[i : i + 1])
                for (key, values), i in zip(self._axes.items(), (*where, leads[0]), strict=True)
            )
            raise StoreError(
                f"{diagnostic}{_step(task)} could not be written to {self.path}: "
                f"{type(error).__name__}: {error}"
            ) from error
        self._complete[diagnostic][where][whole] = done
        if self._events is not None:
            seconds = (clock.time() - start) / len(leads)
            for i, lead in enumerate(leads):
                begun = start + i * seconds
                task = OrderedDict(self._axes, lead_time=self._axes["lead_time"][lead : lead + 1])
                nbytes = sum(row.nbytes for row in rows[lead])
                label = f"{diagnostic}{_step(task, where)}"
                self._events.record(Event("write", label, 0, begun, begun + seconds, nbytes))

    def _where(self, diagnostic: str, coords: Mapping[str, Any]) -> tuple[int, ...]:
        found = []
        for key, values in self._axes.items():
            index = np.flatnonzero(values == coords[key][0])
            if index.size != 1:
                raise StoreError(
                    f"{diagnostic}{_step(coords)}: {self.path} has no {key} {coords[key][0]}"
                )
            found.append(int(index[0]))
        return tuple(found)

    def _size(self, diagnostic: str) -> int:
        """Bytes of all results of a diagnostic, not compressed."""
        steps = int(np.prod([len(values) for values in self._axes.values()]))
        return steps * step_bytes(self._diagnostics[diagnostic], len(self._axes))

    def _check_space(self, needed: int) -> None:
        free = self._destination.free()
        if free is not None and needed > free:
            raise StoreError(
                f"{self.path} would take up to {needed / 1e9:.1f} GB (before compression), and "
                f"{free / 1e9:.1f} GB are free there. Store fewer variables, a region or every "
                "k-th lead time (output.variables, output.region, output.every), or set "
                "output.check_space=false if it compresses well"
            )

    def _check_same(self, store: Any, config: Mapping[str, Any]) -> None:
        problems = mismatches(store, self._axes, self._diagnostics, config)
        if problems:
            raise StoreError(
                f"{self.path} cannot be resumed by this run, which would make other results. "
                + "; ".join(problems)
            )


def _step(coords: Mapping[str, Any], where: tuple[int, ...] = ()) -> str:
    """Say which step a result is of, as far as it tells; ``where`` is in the leading dimensions."""
    own = dict(coords)
    for key, i in zip([k for k in coords if k in ("ensemble", "time")], where, strict=False):
        own[key] = coords[key][i : i + 1]
    words = [""]
    for time in own.get("time", ())[:1]:
        words.append(str(np.datetime_as_string(time, "m")))
    for lead_time in own.get("lead_time", ())[:1]:
        words.append(f"+{lead_time / np.timedelta64(1, 'h'):g} h")
    for member in own.get("ensemble", ())[:1]:
        words.append(f"member {member}")
    return " ".join(words)
