"""Results as chunks of the store, and the marks that say which steps are complete.

A step is marked after its chunks are durable. With ``output.shards`` a file holds several lead
times; it is written when all of its results that the store lacks have arrived.
"""

from __future__ import annotations

import dataclasses
import threading
import time as clock
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from distinf.coords import Coords, step_words
from distinf.errors import StoreError
from distinf.report import Event, Events
from distinf.store.contents import Destination
from distinf.store.schema import StoreLayout, marks_array, shape

if TYPE_CHECKING:  # so that a wrong output path is refused without torch
    import torch

_THREADS = 8  # variables that are written at once: most of the time is waiting for the disk


@dataclass(frozen=True)
class File:
    """One file of each variable of a diagnostic, and of its marks."""

    diagnostic: str
    index: tuple[int, ...]  # in the dimensions before lead_time
    first: int  # index of its first lead time


class Marks:
    """Which steps of a store's diagnostics are complete, before this run and since.

    ``path`` is the store's, for messages.
    """

    def __init__(self, group: zarr.Group, layout: StoreLayout, path: str) -> None:
        self._axes, self._path = layout.axes, path
        self._arrays = {name: group[marks_array(name)] for name in layout.diagnostics}
        self._done = {name: _read(array) for name, array in self._arrays.items()}
        self.leads_in_file: int = next(iter(self._arrays.values())).chunks[-1]

    @property
    def names(self) -> list[str]:
        """The diagnostics."""
        return list(self._done)

    @property
    def number_of_members(self) -> int:
        """Size of the ensemble; 1 without one."""
        return len(self._axes.get("ensemble", [0]))

    def lacks(self, diagnostic: str) -> bool:
        """Whether any step of a diagnostic is not in the store."""
        return not self._done[diagnostic].all()

    def has(self, diagnostic: str, index: tuple[int, ...]) -> bool:
        """Whether the step at an index of the leading dimensions is in the store."""
        return bool(self._done[diagnostic][index])

    def in_all_members(self, diagnostic: str) -> np.ndarray:
        """Which steps are in the store for every member, bool [time, lead_time]."""
        return np.asarray(self._done[diagnostic].all(axis=0))

    def coords(self, *index: int) -> Coords:
        """Coords of the step at an index of the leading dimensions."""
        pairs = zip(self._axes.items(), index, strict=True)
        return OrderedDict((key, values[i : i + 1]) for (key, values), i in pairs)

    def first_of_file(self, lead: int) -> int:
        """Index of the first lead time in the same file."""
        return lead - lead % self.leads_in_file

    def index(self, diagnostic: str, coords: Mapping[str, Any]) -> tuple[int, ...]:
        """Index of the first step of these coords in the leading dimensions.

        Raises `StoreError` if the store has no such step.
        """
        found = []
        for key, values in self._axes.items():
            index = np.flatnonzero(values == coords[key][0])
            if index.size != 1:
                raise StoreError(
                    f"{diagnostic}{step_words(coords)}: {self._path} has no {key} {coords[key][0]}"
                )
            found.append(int(index[0]))
        return tuple(found)

    def is_complete(self, diagnostic: str, coords: Mapping[str, Any]) -> bool:
        """Whether this step of a diagnostic is in the store."""
        return bool(self._done[diagnostic][self.index(diagnostic, coords)])

    def lacking(self, coords: Mapping[str, Any]) -> list[str]:
        """Diagnostics whose result for a state with these coords is to be stored, and is not."""
        if coords["lead_time"][-1] not in self._axes["lead_time"]:
            return []
        where = {**coords, "lead_time": coords["lead_time"][-1:]}
        return [name for name in self._done if not self.is_complete(name, where)]

    def incomplete(self, times: np.ndarray, members: np.ndarray | None) -> tuple[int, int] | None:
        """First and last index of the lead times that any of these forecasts lacks, or None."""
        axes = [times] if members is None else [members, times]
        names = [name for name in self._axes if name != "lead_time"]
        where = [np.isin(self._axes[name], own) for name, own in zip(names, axes, strict=True)]
        done = np.logical_and.reduce([own[np.ix_(*where)] for own in self._done.values()])
        lacking = np.flatnonzero(~done.reshape(-1, done.shape[-1]).all(axis=0))
        return (int(lacking[0]), int(lacking[-1])) if len(lacking) else None

    def take_over(self, names: Mapping[str, Sequence[str]], done: Marks) -> None:
        """Mark for every member the steps that other marks, [time, lead_time], have.

        ``names`` are those of the diagnostics here, and of all that must be complete there.
        """
        for mine, others in names.items():
            there = [done._done[other] for other in others]
            for time, lead in np.argwhere(np.all(there, axis=0)).tolist() if there else ():
                for member in range(self.number_of_members):
                    if not self.has(mine, (member, time, lead)):
                        self.set(File(mine, (member, time), self.first_of_file(lead)), [lead])

    @property
    def counts(self) -> tuple[int, int]:
        """How many tasks are complete, and how many there are."""
        return sum(int(m.sum()) for m in self._done.values()), sum(
            m.size for m in self._done.values()
        )

    def steps(self, file: File) -> tuple[Any, ...]:
        """Index of a file's steps in the leading dimensions; a slice of lead times is the last."""
        end = min(file.first + self.leads_in_file, len(self._axes["lead_time"]))
        return (*file.index, slice(file.first, end))

    def lacking_in_file(self, file: File) -> int:
        """How many lead times of a file are not in the store."""
        return int((~self._done[file.diagnostic][self.steps(file)]).sum())

    def set(self, file: File, leads: Iterable[int], complete: bool = True) -> None:
        """Mark lead times of one file, in the store first."""
        steps = self.steps(file)
        done = self._done[file.diagnostic][steps].copy()
        done[[lead - file.first for lead in leads]] = complete
        self._arrays[file.diagnostic][steps] = done
        self._done[file.diagnostic][steps] = done

    def marked_files(self) -> list[tuple[File, list[int]]]:
        """Every file with complete steps, and their lead times."""
        found = []
        for name, done in self._done.items():
            for index in np.ndindex(*done.shape[:-1]):
                for first in range(0, done.shape[-1], self.leads_in_file):
                    file = File(name, index, first)
                    leads = np.flatnonzero(done[self.steps(file)])
                    if len(leads):
                        found.append((file, [first + int(i) for i in leads]))
        return found


def _read(marks: zarr.Array) -> np.ndarray:
    """Read all marks; those of a torn chunk are not set."""
    try:
        return np.asarray(marks[:])
    except Exception:
        done = np.zeros(marks.shape, bool)
        for where in np.ndindex(*marks.shape[:-1]):
            for first in range(0, marks.shape[-1], marks.chunks[-1]):
                file = (*where, slice(first, first + marks.chunks[-1]))
                try:
                    done[file] = marks[file]
                except Exception:  # what cannot be read is computed again
                    marks[file] = False
        return done


@dataclass(frozen=True)
class Written:
    """A file that a rank has written; a worker sends it to the driver in place of the values."""

    file: File
    rank: int
    start: float  # of the writing, in seconds since the epoch
    end: float
    nbytes: int


class Chunks:
    """Write results, and mark a step complete once its data is durable.

    ``rank`` is this process: 0 is the driver. Without ``events``, no writes are recorded.
    """

    def __init__(
        self,
        group: zarr.Group,
        layout: StoreLayout,
        marks: Marks,
        destination: Destination,
        events: Events | None = None,
        rank: int = 0,
    ) -> None:
        self.layout = layout
        self._axes, self._diagnostics = layout.axes, layout.diagnostics
        # Chunks of NaN, too, so that a missing file is always an error.
        whole = {"write_empty_chunks": True}
        self.arrays: dict[str, Any] = {
            str(name): group[str(name)].with_config(whole)
            for coords in layout.diagnostics.values()
            for name in coords["variable"]
        }
        # Called when lead times of a file are complete.
        self.completed: Callable[[File, Iterable[int]], None] = lambda file, leads: None
        self._marks, self._destination = marks, destination
        self._events, self._rank = events, rank
        self._waiting: dict[File, dict[int, list[np.ndarray]]] = {}
        self._turn = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="distinf-file")

    def add(self, diagnostic: str, x: torch.Tensor, coords: Coords) -> None:
        """Take a result [(ensemble=1,) time=1, lead_time=1, ...]; write its file if it is whole.

        Raises `StoreError` if it does not fit, or cannot be written.
        """
        file, lead, rows = self._rows(diagnostic, x, coords)
        with self._turn:
            waiting = self._waiting.setdefault(file, {})
            waiting[lead] = rows
            whole = len(waiting) == self._marks.lacking_in_file(file)
            if whole:
                del self._waiting[file]
        if whole:
            self._put(file, waiting)

    def write(self, diagnostic: str, x: torch.Tensor, coords: Coords) -> Written:
        """Write the chunks of a result, which the driver marks; raise `StoreError` as `add`.

        Only into a store whose files have one lead time each.
        """
        file, lead, rows = self._rows(diagnostic, x, coords)
        with self._naming(file, lead):
            return self._put_data(file, {lead: rows})

    def mark(self, written: Written) -> None:
        """Mark a step complete whose chunks another rank has written; once, if two ranks have."""
        leads = [written.file.first]
        if self._marks.has(written.file.diagnostic, (*written.file.index, *leads)):
            return
        with self._naming(written.file, *leads):
            self._mark(written.file, leads)
        self._record(written, leads)
        self.completed(written.file, leads)

    def finish(self) -> None:
        """Write what waits for other lead times of its file; nothing can be added afterwards.

        Raises the first `StoreError` after it has tried to write all.
        """
        first: StoreError | None = None
        waiting, self._waiting = self._waiting, {}
        for file, rows in waiting.items():
            try:
                self._put(file, rows)
            except StoreError as error:
                first = first or error
        self._threads.shutdown()
        if first is not None:
            raise first

    def remove(self, file: File) -> None:
        """Remove a file of each variable; its marks stay."""
        for name in self._diagnostics[file.diagnostic]["variable"]:
            self._destination.remove(self._path(str(name), file))

    def verify(self, needed: Callable[[File], bool] = lambda file: True) -> list[str]:
        """Read back every complete step; unmark and return those that are damaged, in words.

        Files that are not ``needed`` may be missing.
        """
        torn: list[str] = []
        for file, leads in filter(lambda found: needed(found[0]), self._marks.marked_files()):
            names = map(str, self._diagnostics[file.diagnostic]["variable"])
            if not all(self._is_whole(name, file, leads) for name in names):
                self._marks.set(file, leads, complete=False)
                torn += [self._words(file, lead) for lead in leads]
        return torn

    def _is_whole(self, name: str, file: File, leads: list[int]) -> bool:
        path, count = self._path(name, file), self._marks.leads_in_file
        if not self._destination.has(path):
            return False
        try:
            self.arrays[name][self._marks.steps(file)]
        except Exception:  # its checksum, or any other error of a codec
            return False
        if count == 1:
            return True
        # A shard without an index reads as NaN. At its end: offset and length of each chunk, all
        # bits set for none, and a checksum.
        index = self._destination.get(path)[-16 * count - 4 : -4]
        if len(index) != 16 * count:
            return False
        offsets = np.frombuffer(index, "<u8")[::2]
        chunks = [lead - file.first for lead in leads]
        return bool((offsets[chunks] != np.iinfo(np.uint64).max).all())

    def _path(self, name: str, file: File) -> str:
        """Path of the file of a variable in the store."""
        array = self.arrays[name]
        grid = (0,) * (array.ndim - len(self._axes))
        lead = file.first // self._marks.leads_in_file
        key = array.metadata.encode_chunk_key((*file.index, lead, *grid))
        return f"{self.layout.inside}{name}/{key}"

    def _rows(
        self, diagnostic: str, x: torch.Tensor, coords: Coords
    ) -> tuple[File, int, list[np.ndarray]]:
        """Return the file of a result, its lead time in the store, and an array per variable."""
        expected = self._diagnostics[diagnostic]
        leading = len(self._axes)
        sizes = (*(1,) * leading, *shape(expected)[leading:])
        if list(coords) != list(expected) or tuple(x.shape) != sizes:
            raise StoreError(
                f"{diagnostic}{step_words(coords)}: the result has dimensions "
                f"{dict(zip(coords, x.shape, strict=False))}, "
                f"the store {dict(zip(expected, sizes, strict=False))}"
            )
        *index, lead = self._marks.index(diagnostic, coords)
        data = x.cpu().float().numpy()
        axis = list(expected).index("variable") - leading
        rows = list(np.moveaxis(data[(0,) * leading], axis, 0))
        return File(diagnostic, tuple(index), self._marks.first_of_file(lead)), lead, rows

    def _put(self, file: File, rows: dict[int, list[np.ndarray]]) -> None:
        """Write one file of each variable and mark its lead times complete."""
        with self._naming(file, min(rows)):
            written = self._put_data(file, rows)
            self._mark(file, rows)
        self._record(dataclasses.replace(written, end=clock.time()), sorted(rows))
        self.completed(file, sorted(rows))

    def _put_data(self, file: File, rows: dict[int, list[np.ndarray]]) -> Written:
        names, start = self._diagnostics[file.diagnostic]["variable"], clock.time()

        def put(i: int) -> None:
            self._put_variable(str(names[i]), file, {k: v[i] for k, v in rows.items()})

        # One variable is compressed while another one is synced.
        list(self._threads.map(put, range(len(names))))
        nbytes = sum(row.nbytes for lead in rows.values() for row in lead)
        return Written(file, self._rank, start, clock.time(), nbytes)

    def _put_variable(self, name: str, file: File, rows: dict[int, np.ndarray]) -> None:
        array, steps = self.arrays[name], self._marks.steps(file)
        count = steps[-1].stop - file.first
        if self._marks.leads_in_file == 1:
            values = rows[file.first][np.newaxis]
        else:
            if self._marks.lacking_in_file(file) < count:
                values = np.asarray(array[steps])  # what earlier runs wrote stays
            else:
                # Zarr would read the file, which a lost node may have left half written.
                self._destination.remove(self._path(name, file))
                values = np.full((count, *array.shape[len(steps) :]), np.nan)
            for lead, row in rows.items():
                values[lead - file.first] = row
        # With all dimensions of a chunk: else Zarr copies the values once more.
        where = (*(slice(i, i + 1) for i in file.index), steps[-1])
        array[where] = values[(np.newaxis,) * len(file.index)]

    def _mark(self, file: File, leads: Iterable[int]) -> None:
        self._marks.set(file, leads)
        self._destination.check_held()

    def _record(self, written: Written, leads: Sequence[int]) -> None:
        if self._events is None:
            return
        seconds = (written.end - written.start) / len(leads)
        for i, lead in enumerate(leads):
            begun = written.start + i * seconds
            label, nbytes = self._words(written.file, lead), written.nbytes // len(leads)
            self._events.record(Event("write", label, written.rank, begun, begun + seconds, nbytes))

    @contextmanager
    def _naming(self, file: File, lead: int) -> Iterator[None]:
        """Name the step and the store in an error."""
        try:
            yield
        except Exception as error:
            raise StoreError(
                f"{self._words(file, lead)} could not be written to "
                f"{self._destination.name}: {type(error).__name__}: {error}"
            ) from error

    def _words(self, file: File, lead: int) -> str:
        lead_time = self._axes["lead_time"][lead : lead + 1]
        step = step_words(OrderedDict(self._axes, lead_time=lead_time), file.index)
        return f"{file.diagnostic}{step}"
