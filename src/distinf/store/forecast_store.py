"""The forecast store: who may open it, and writing results to it.

One Zarr v3 group: a float32 array for each variable, one chunk a (time, lead_time), fill value
NaN; and for each diagnostic an array ``<diagnostic>_complete`` (time, lead_time) of marks. A step
is marked complete after its data is on disk. An ensemble's arrays have a first dimension
``ensemble``.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import zarr

from distinf.errors import (
    DistinfError,
    StateLost,
    StoreError,
    TaskError,
    TaskLost,
)
from distinf.options import Output, Statistics
from distinf.report import Event, Events
from distinf.store.chunks import Chunks, Marks, Written
from distinf.store.contents import MEMBERS, RESTART, TOKEN, Content
from distinf.store.destination import find_destination
from distinf.store.member_statistics import (
    MemberStatistics,
    Verified,
    check_statistics,
    statistics_layout,
)
from distinf.store.provenance import Provenance
from distinf.store.schema import (
    Schema,
    StoreLayout,
    check_clashes,
    create,
    grow,
    hide,
    leads_in_file,
    mismatches,
    plan_schema,
)
from distinf.store.worker_writer import WriterTicket

log = logging.getLogger("distinf")


def check_output(path: str | os.PathLike[str], mode: str) -> None:
    """Refuse an output path that this mode must not touch, or where nothing can be written.

    Raises `StoreError`, which names the choices.
    """
    destination = find_destination(path)
    destination.check_writable()
    content = destination.content()
    if content is Content.NOTHING:
        return
    if mode == "create":
        raise _exists(path)
    if content is Content.FOREIGN:
        raise StoreError(
            f"parameters.output_path={path} was not made by distinf, so output.mode={mode} does "
            "not touch it; choose another path"
        )
    if mode == "overwrite" or content is Content.UNFINISHED:
        destination.check_replaceable()


def _exists(path: str | os.PathLike[str]) -> StoreError:
    return StoreError(
        f"parameters.output_path={path} exists already. Choose another path, "
        "output.mode=resume to continue it, or output.mode=overwrite to replace it"
    )


def check_resume(
    path: str | os.PathLike[str], config: Mapping[str, Any], files: Mapping[str, Any]
) -> None:
    """Refuse to continue a store, if one is there, that was made with another config or files.

    ``files`` are those of `distinf.loading.read_files`. Raises `StoreError`, which says what
    differs.
    """
    destination = find_destination(path)
    if destination.content() is Content.STORE:
        written = zarr.open_group(destination.open(), mode="r").attrs.asdict()
        _refuse(os.fspath(path), Provenance(config, files=files).problems(written))


def _refuse(path: str, problems: Sequence[str]) -> None:
    if problems:
        raise StoreError(
            f"{path} cannot be resumed by this run, which would make other results. "
            + "; ".join(problems)
        )


class ForecastStore:
    """A forecast's results in a Zarr store.

    Parameters
    ----------
    path : str | os.PathLike[str]
        The store, usually ``something.zarr``, or a URL such as ``s3://bucket/something.zarr``.
    layout : StoreLayout
        The results that it holds.
    output : Output, optional
        How they are stored.
    provenance : Provenance, optional
        What the values come from, kept in the store. To resume it, what decides the values must
        be the same.
    events : Events | None, optional
        Where writes are recorded.
    pending : int, optional
        Results that may wait to be written, by default 8: further ones hold up `write`.
    skip_errors : bool, optional
        Whether a task that failed is left out and listed in ``skipped``, by default False: its
        error is raised.
    verified : Verified | None, optional
        What the members are compared with, by default None.

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
        If two diagnostics have the same variable.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: StoreLayout,
        output: Output | None = None,
        provenance: Provenance | None = None,
        events: Events | None = None,
        pending: int = 8,
        skip_errors: bool = False,
        verified: Verified | None = None,
    ) -> None:
        output, provenance = output or Output(), provenance or Provenance()
        self.path = os.fspath(path)
        self._hides = not output.members
        self._layout = dataclasses.replace(layout, inside=f"{MEMBERS}/" if self._hides else "")
        self._summary: StoreLayout | None = None
        self._verified = verified if layout.ensemble is not None else None
        check_statistics(output, layout.ensemble, layout.diagnostics)
        if output.statistics is not None or self._verified is not None:
            self._summary = statistics_layout(layout, output.statistics, self._verified)
        self.skipped: list[str] = []
        self._events = events
        self._skip_errors = skip_errors
        check_output(path, output.mode)
        check_clashes(layout.diagnostics)
        self.destination = find_destination(path)
        resumes = output.mode == "resume"
        if resumes and self.destination.content() is Content.STORE:
            self._check_same(provenance)  # before anything is touched, the hold included
        self.destination.hold()
        try:
            created = self.destination.content() is Content.STORE
            if output.mode == "create" and created:
                raise _exists(path)  # another run was quicker
            if resumes and created:
                self._resume(provenance)
            else:
                self._create(output, provenance)
            group = zarr.open_group(self.destination.open(), mode="r+", use_consolidated=False)
            self.marks, self._chunks = self._open_results(group, events)
            self._statistics: MemberStatistics | None = None
            if self._summary is not None:
                self._statistics = self._open_statistics(group, output.statistics)
            if output.verify:
                self._verify()
            if self._statistics is not None:
                self._statistics.catch_up()
        except BaseException:
            self.destination.release()
            raise
        self._pending, self._slots = pending, threading.BoundedSemaphore(pending)
        self._writers = ThreadPoolExecutor(output.writers, thread_name_prefix="distinf-write")
        self._error: BaseException | None = None
        self._closed = False

    @contextmanager
    def writer_ticket(self) -> Iterator[WriterTicket]:
        """Return what a `RemoteWriter` needs; workers open their writers within this block."""
        name, token = self.destination.name, secrets.token_hex(8)
        path = name if "://" in name else os.path.abspath(name)
        self.destination.put(TOKEN, token.encode())
        try:
            yield WriterTicket(path, token, self._layout)
        finally:
            self.destination.remove(TOKEN)

    def write(self, diagnostic: str, future: Future[Any]) -> None:
        """Write the result of a task when it is there; return at once unless too many wait.

        Parameters
        ----------
        diagnostic : str
            Whose result it is.
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

    def drain(self) -> None:
        """Wait until every result so far is written; raise as `check`."""
        self._wait_for_all()
        self.check()

    def check(self) -> None:
        """Raise the first error of any task or write so far."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Wait until every result is written, then release the store; idempotent.

        Raises
        ------
        Exception
            The first error of any task or write.
        """
        self._close(wait=True)
        self.check()

    def __enter__(self) -> ForecastStore:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
            return
        # After an error of a model what is in flight still arrives; after Ctrl-C it does not.
        self._close(wait=isinstance(error, DistinfError))
        done, total = self.marks.counts
        error.add_note(
            f"{done} of {total} tasks are complete in {self.path}; the same command with "
            "output.mode=resume continues from there"
        )

    def _create(self, output: Output, provenance: Provenance) -> None:
        if output.check_space:
            self._check_space()
        schema = self._plan(min(output.shards or 1, len(self._layout.lead_times)))
        about = {"Conventions": "CF-1.11", "title": "Diagnosed forecast"}
        self.destination.begin()
        create(self.destination, schema, {**about, **provenance.created()})
        self.destination.commit()

    def _resume(self, provenance: Provenance) -> None:
        schema, written = self._check_same(provenance)  # no other run changes it from here on
        if changed := provenance.warnings(written):
            log.warning(
                "%s was begun with others, so that values from here on may differ: %s",
                self.path,
                "; ".join(changed),
            )
        grow(self.destination, schema, provenance.resumed(written))

    def _open_results(self, group: zarr.Group, events: Events | None) -> tuple[Marks, Chunks]:
        if self._hides:
            assert self._summary is not None
            leads = leads_in_file(self.destination.open(), self._summary.diagnostics)
            group = hide(self.destination, self._layout, leads)
        marks = Marks(group, self._layout, self.path)
        return marks, Chunks(group, self._layout, marks, self.destination, events)

    def _open_statistics(self, group: zarr.Group, wanted: Statistics | None) -> MemberStatistics:
        assert self._summary is not None
        done = Marks(group, self._summary, self.path)
        results = Chunks(group, self._summary, done, self.destination)
        made = MemberStatistics(
            wanted,
            self._verified,
            self._layout,
            self._chunks,
            self.marks,
            results,
            done,
            not self._hides,
        )
        if self._hides:  # the members of a complete store were removed with their marks
            self.marks.take_over({name: made.results_of(name) for name in self.marks.names}, done)
        self._chunks.completed = made.look
        return made

    def _plan(self, leads: int) -> Schema:
        """Plan what readers of the store see."""
        schema = None if self._hides else plan_schema(self._layout, leads)
        if self._summary is not None:
            schema = plan_schema(self._summary, leads, schema)
        assert schema is not None
        return schema

    def _check_same(self, provenance: Provenance) -> tuple[Schema, Mapping[str, Any]]:
        """Compare an existing store with this run; return its schema and the store's attributes."""
        store = self.destination.open()
        written = zarr.open_group(store, mode="r").attrs.asdict()
        seen = self._layout if self._summary is None else self._summary
        schema = self._plan(leads_in_file(store, seen.diagnostics))
        _refuse(self.path, provenance.problems(written) or mismatches(store, schema))
        return schema, written

    def _check_space(self) -> None:
        needed, free = self._layout.nbytes, self.destination.free_bytes()
        needed += 0 if self._summary is None else self._summary.nbytes
        if free is not None and needed > free:
            raise StoreError(
                f"{self.path} would take up to {needed / 1e9:.1f} GB (before compression), and "
                f"{free / 1e9:.1f} GB are free there. Store fewer variables, a region or every "
                "k-th lead time (output.variables, output.region, output.every), or set "
                "output.check_space=false if it compresses well"
            )

    def _verify(self) -> None:
        if self._statistics is None:
            damaged = self._chunks.verify()
        else:  # those first: without them, their members are needed again
            damaged = self._statistics.verify()
            damaged += self._chunks.verify(self._statistics.needs)
        if damaged:
            log.warning(
                "%d step(s) in %s are damaged and are computed again: %s",
                len(damaged),
                self.path,
                ", ".join([*damaged[:5], *(["..."] if len(damaged) > 5 else [])]),
            )

    def _close(self, wait: bool) -> None:
        if self._closed:
            return
        if wait:
            self._wait_for_all()
        self._closed = True
        self._writers.shutdown(wait=True)
        try:
            self._chunks.finish()
            if self._statistics is not None:
                self._statistics.finish()
        except StoreError as error:
            self._error = self._error or error
        done, total = self.marks.counts
        if done == total and (self._statistics is None or self._statistics.is_complete):
            self.destination.remove(RESTART)
            self.destination.remove(MEMBERS)
        self.destination.release()

    def _wait_for_all(self) -> None:
        for _ in range(self._pending):
            self._slots.acquire()
        self._slots.release(self._pending)

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
                self._chunks.mark(result)
            else:
                self._chunks.add(diagnostic, *result)
        except StateLost:
            pass  # it is computed again
        except BaseException as error:
            of_store = getattr(error, "kind", "") == StoreError.__name__  # a worker could not write
            if self._skip_errors and isinstance(error, TaskError | TaskLost) and not of_store:
                self.skipped.append(f"{diagnostic}: {error}")
                if self._events is not None:
                    now = time.time()
                    self._events.record(Event("skip", self.skipped[-1], 0, now, now))
            else:
                self._error = self._error or error
        finally:
            self._slots.release()
