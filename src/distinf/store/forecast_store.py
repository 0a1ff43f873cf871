"""The forecast store: its schema, what is complete in it, and writing to it.

One Zarr v3 group: a float32 array for each variable, one chunk a (time, lead_time), fill value
NaN; and for each diagnostic an array ``<diagnostic>_complete`` (time, lead_time) that says which
steps are there. A step is marked after its data is on disk. An ensemble's arrays have a first
dimension ``ensemble``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import zarr

from distinf.coords import Coords
from distinf.errors import (
    DistinfError,
    Interrupted,
    StoreError,
    TaskError,
    TaskLost,
    as_config_error,
)
from distinf.options import Output
from distinf.report import Events
from distinf.store.destination import find_destination
from distinf.store.files import Files, Written
from distinf.store.holder import RESTART
from distinf.store.marks import Marks
from distinf.store.provenance import Provenance
from distinf.store.schema import (
    Schema,
    check_clashes,
    create,
    leads_in_file,
    mismatches,
    plan_schema,
    settle,
    step_bytes,
)
from distinf.store.worker_writer import meeting_place

__all__ = ["ForecastStore", "check_output", "check_resume"]

log = logging.getLogger("distinf")


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
        raise _exists(path)
    if not destination.is_store():
        raise StoreError(
            f"parameters.output_path={path} was not made by distinf, so output.mode={mode} does "
            "not touch it; choose another path"
        )
    if mode == "overwrite" or not destination.is_created():
        destination.check_replaceable()


def _exists(path: str | os.PathLike[str]) -> StoreError:
    return StoreError(
        f"parameters.output_path={path} exists already. Choose another path, "
        "output.mode=resume to continue it, or output.mode=overwrite to replace it"
    )


def check_resume(
    path: str | os.PathLike[str], config: Mapping[str, Any], files: Mapping[str, Any]
) -> None:
    """Refuse to continue a store that was made with another config or other files.

    Parameters
    ----------
    path : str | os.PathLike[str]
        ``parameters.output_path``, a path or a URL; nothing is done where no store is.
    config : Mapping[str, Any]
        The resolved config.
    files : Mapping[str, Any]
        Inputs and packages, as `distinf.loading.read_files`.

    Raises
    ------
    StoreError
        Says what differs.
    """
    destination = find_destination(path)
    if destination.is_created():
        written = zarr.open_group(destination.open(), mode="r").attrs.asdict()
        mine = Provenance(config, files=files)
        _refuse(os.fspath(path), mine.problems(written))


class Writers(Protocol):
    """A chain of diagnostics on some ranks, as `DistributedInference` holds it."""

    @property
    def remote_ranks(self) -> list[int]:
        """The ranks."""
        ...

    def call_func(self, name: str, *args: Any, rank: str | int) -> Any:
        """Call a method of the chain on a rank."""
        ...


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
        Versions, kept in the store; a resumed run says which have changed.
    files : Mapping[str, Any], optional
        Inputs and packages, as `distinf.loading.read_files`, kept in the store; a resumed run
        must have the same.
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
    destination : Destination
        Where it lies.
    marks : Marks
        What is complete.
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
        files: Mapping[str, Any] | None = None,
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
        check_output(path, output.mode)
        check_clashes(diagnostics)
        self.destination = find_destination(path)
        provenance = Provenance(config or {}, versions or {}, files or {})
        if output.mode == "resume" and self.destination.is_created():
            self._check_same(provenance)  # before anything is touched, the hold included
        self.destination.hold()
        try:
            if output.mode == "create" and self.destination.is_created():
                raise _exists(path)  # another run was quicker
            if output.mode == "resume" and self.destination.is_created():
                schema, written = self._check_same(provenance)  # nobody changes it from here on
                self._warn(provenance.warnings(written))
                settle(self.destination, schema, provenance.resumed(written))
            else:
                if output.check_space:
                    self._check_space(sum(map(self._size, self._diagnostics)))
                leads = min(output.shards or 1, len(lead_times))
                schema = plan_schema(self._axes, self._diagnostics, leads, attributes)
                about = {"Conventions": "CF-1.11", "title": "Diagnosed forecast"}
                self.destination.begin()
                create(self.destination, schema, {**about, **provenance.created()})
                self.destination.created()
            store = self.destination.open()
            self._group = zarr.open_group(store, mode="r+", use_consolidated=False)
            self.marks = Marks(self._group, self._axes, self._diagnostics, self.path)
            self._files = Files(
                self._group,
                self._axes,
                self._diagnostics,
                self.marks,
                self.destination,
                self.path,
                events,
            )
            if output.verify:
                self._verify()
        except BaseException:
            self.destination.release()
            raise
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
        where = {"ensemble": [member], "time": [time], "lead_time": [lead_time]}
        return self.marks.is_complete(diagnostic, where)

    def let_write(self, farmed: Iterable[Writers]) -> None:
        """Let the workers write the results of these chains themselves.

        Raises
        ------
        ConfigError
            If a worker does not reach the store.
        """
        with meeting_place(self.destination) as word:
            where = self.path if "://" in self.path else os.path.abspath(self.path)
            store = where, word, self._axes, self._diagnostics
            for infer, rank in [(each, rank) for each in farmed for rank in each.remote_ranks]:
                try:
                    infer.call_func("write_to", *store, rank, rank=rank)
                except TaskError as error:
                    raise as_config_error(error, f"rank {error.rank}: ") from None

    def write(self, diagnostic: str, future: Future[Any]) -> None:
        """Write the result of a task when it is there; returns at once unless too many wait.

        Parameters
        ----------
        diagnostic : str
            Which diagnostic it is of.
        future : Future
            Of `DistributedInference.submit`: a tensor and its coords, or of a `Chain` a mapping
            from diagnostics to these, or to what its worker has written.

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
        done, total = self.marks.counts
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
        try:
            self._files.finish()
        except StoreError as error:
            self._error = self._error or error
        done, total = self.marks.counts
        if done == total:
            self.destination.remove(RESTART)
        self.destination.release()

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
            if isinstance(result, Written):
                self._files.mark(diagnostic, result)
            else:
                self._files.add(diagnostic, *result)
        except (TaskError, TaskLost) as error:
            if not self._skip_errors or getattr(error, "kind", "") == StoreError.__name__:
                self._error = self._error or error
            else:
                with self._turn:
                    self.skipped.append(f"{diagnostic}: {error}")
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._slots.release()

    def _size(self, diagnostic: str) -> int:
        """Bytes of all results of a diagnostic, not compressed."""
        steps = int(np.prod([len(values) for values in self._axes.values()]))
        return steps * step_bytes(self._diagnostics[diagnostic], len(self._axes))

    def _check_space(self, needed: int) -> None:
        free = self.destination.free()
        if free is not None and needed > free:
            raise StoreError(
                f"{self.path} would take up to {needed / 1e9:.1f} GB (before compression), and "
                f"{free / 1e9:.1f} GB are free there. Store fewer variables, a region or every "
                "k-th lead time (output.variables, output.region, output.every), or set "
                "output.check_space=false if it compresses well"
            )

    def _verify(self) -> None:
        torn = self._files.verify()
        if torn:
            log.warning(
                "%d step(s) in %s are damaged and are computed again: %s",
                len(torn),
                self.path,
                ", ".join([*torn[:5], *(["..."] if len(torn) > 5 else [])]),
            )

    def _check_same(self, provenance: Provenance) -> tuple[Schema, Mapping[str, Any]]:
        """Compare an existing store with this run; return its schema and the store's attributes."""
        store = self.destination.open()
        written = zarr.open_group(store, mode="r").attrs.asdict()
        schema = plan_schema(self._axes, self._diagnostics, leads_in_file(store, self._diagnostics))
        _refuse(self.path, provenance.problems(written) or mismatches(store, schema))
        return schema, written

    def _warn(self, changed: Sequence[str]) -> None:
        if changed:
            log.warning(
                "%s was begun with others, so that values from here on may differ: %s",
                self.path,
                "; ".join(changed),
            )


def _refuse(path: str, problems: Sequence[str]) -> None:
    if problems:
        raise StoreError(
            f"{path} cannot be resumed by this run, which would make other results. "
            + "; ".join(problems)
        )
