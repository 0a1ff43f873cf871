"""Results into the store's files: one for each variable and step, or for several lead times."""

from __future__ import annotations

import threading
import time as clock
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import zarr

from distinf.coords import Coords
from distinf.errors import StoreError
from distinf.report import Event, Events
from distinf.store.destination import Destination
from distinf.store.marks import Marks, step_words
from distinf.store.schema import shape

__all__ = ["Files", "Written"]

_THREADS = 8  # variables that are written at once: most of the time is waiting for the disk

# A file of a diagnostic: its name, where it is in the leading dimensions, its first lead time.
File = tuple[str, tuple[int, ...], int]


@dataclass(frozen=True)
class Written:
    """A step whose data lies in the store; travels instead of it.

    Parameters
    ----------
    place : tuple[int, ...]
        Index in the leading dimensions.
    rank : int
        Who wrote it.
    start, end : float
        When it was written, seconds since the epoch.
    nbytes : int
        Bytes of its values.
    """

    place: tuple[int, ...]
    rank: int
    start: float
    end: float
    nbytes: int


class Files:
    """Write results, and mark a step complete once its data is on disk.

    Parameters
    ----------
    group : zarr.Group
        The store.
    axes : Coords
        Its leading dimensions.
    diagnostics : Mapping[str, Coords]
        For each diagnostic its output coords.
    marks : Marks
        Its completeness marks.
    destination : Destination
        Where it lies.
    path : str
        The same, for messages.
    events : Events | None
        Where writes are recorded.
    rank : int, optional
        Of this process, by default 0: the driver.
    """

    def __init__(
        self,
        group: zarr.Group,
        axes: Coords,
        diagnostics: Mapping[str, Coords],
        marks: Marks,
        destination: Destination,
        path: str,
        events: Events | None,
        rank: int = 0,
    ) -> None:
        self._rank = rank
        self._axes, self._diagnostics = axes, diagnostics
        # Also for a result that is NaN everywhere, so that a file that is missing shows.
        whole = {"write_empty_chunks": True}
        self._arrays = {
            str(name): group[str(name)].with_config(whole)
            for coords in diagnostics.values()
            for name in coords["variable"]
        }
        self._marks, self._destination, self._path = marks, destination, path
        self._events = events
        self._waiting: dict[File, dict[int, list[np.ndarray]]] = {}
        self._turn = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="distinf-file")

    def add(self, diagnostic: str, x: torch.Tensor, coords: Coords) -> None:
        """Take a result [(ensemble=1,) time=1, lead_time=1, ...]; write its file if it is whole.

        Raises
        ------
        StoreError
            If it does not fit, or cannot be written.
        """
        file, lead, rows = self._rows(diagnostic, x, coords)
        with self._turn:
            waiting = self._waiting.setdefault(file, {})
            waiting[lead] = rows
            whole = len(waiting) == self._marks.lacking_in_file(*file)
            if whole:
                del self._waiting[file]
        if whole:
            self._put(file, waiting)

    def write(self, diagnostic: str, x: torch.Tensor, coords: Coords) -> Written:
        """Write the files of a result, which another process will mark; of one lead time each.

        Raises
        ------
        StoreError
            If it does not fit, or cannot be written.
        """
        (_, where, _), lead, rows = self._rows(diagnostic, x, coords)
        start = clock.time()
        with self._naming(diagnostic, where, lead):
            self._put_data((diagnostic, where, lead), {lead: rows})
        nbytes = sum(row.nbytes for row in rows)
        return Written((*where, lead), self._rank, start, clock.time(), nbytes)

    def mark(self, diagnostic: str, written: Written) -> None:
        """Mark a step complete whose data another rank has written.

        Raises
        ------
        StoreError
            If the store cannot be written to.
        """
        *where, lead = written.place
        with self._naming(diagnostic, tuple(where), lead):
            self._mark((diagnostic, tuple(where), lead), [lead])
        self._record(diagnostic, [lead], written)

    def finish(self) -> None:
        """Write what waits for other lead times of its file; nothing can be added afterwards.

        Raises
        ------
        StoreError
            The first that cannot be written; the others are written.
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

    def verify(self) -> list[str]:
        """Read back every complete step; those that are not whole are no longer complete.

        Returns
        -------
        list[str]
            These steps, in words.
        """
        torn: list[str] = []
        for diagnostic, where, first, leads in self._marks.marked_files():
            if not all(
                self._is_whole(str(name), where, first, leads)
                for name in self._diagnostics[diagnostic]["variable"]
            ):
                self._marks.set(diagnostic, where, first, leads, complete=False)
                torn += [f"{diagnostic}{self._words(where, lead)}" for lead in leads]
        return torn

    def _is_whole(self, name: str, where: tuple[int, ...], first: int, leads: list[int]) -> bool:
        if not self._destination.has(self._file_name(name, where, first)):
            return False
        try:
            self._arrays[name][(*where, self._marks.file(first))]
        except Exception:  # its checksum, or whatever a damaged file makes a codec say
            return False
        return self._marks.leads == 1 or self._are_in_shard(
            self._file_name(name, where, first), [lead - first for lead in leads]
        )

    def _are_in_shard(self, file: str, chunks: list[int]) -> bool:
        """Whether a shard's index has these chunks; one without an index reads as NaN."""
        count = self._marks.leads
        # At the end: offset and length of each chunk, all bits set for none, and a checksum.
        index = self._destination.get(file)[-16 * count - 4 : -4]
        if len(index) != 16 * count:
            return False
        offsets = np.frombuffer(index, "<u8")[::2]
        return bool((offsets[chunks] != np.iinfo(np.uint64).max).all())

    def _file_name(self, name: str, where: tuple[int, ...], first: int) -> str:
        array = self._arrays[name]
        grid = (0,) * (array.ndim - len(self._axes))
        key = array.metadata.encode_chunk_key((*where, first // self._marks.leads, *grid))
        return f"{name}/{key}"

    def _rows(
        self, diagnostic: str, x: torch.Tensor, coords: Coords
    ) -> tuple[File, int, list[np.ndarray]]:
        """Take a result apart into its variables."""
        expected = self._diagnostics[diagnostic]
        leading = len(self._axes)
        sizes = (*(1,) * leading, *shape(expected)[leading:])
        if list(coords) != list(expected) or tuple(x.shape) != sizes:
            raise StoreError(
                f"{diagnostic}{step_words(coords)}: the result has dimensions "
                f"{dict(zip(coords, x.shape, strict=False))}, "
                f"the store {dict(zip(expected, sizes, strict=False))}"
            )
        *where, lead = self._marks.where(diagnostic, coords)
        data = x.to("cpu", torch.float32).numpy()
        # Views: none outlives the result but those that wait for other lead times of their file.
        rows = list(
            np.moveaxis(data[(0,) * leading], list(expected).index("variable") - leading, 0)
        )
        return (diagnostic, tuple(where), lead - lead % self._marks.leads), lead, rows

    def _put(self, file: File, rows: dict[int, list[np.ndarray]]) -> None:
        """Write one file of each variable and mark its lead times complete."""
        diagnostic, where, first = file
        start = clock.time()
        with self._naming(diagnostic, where, min(rows)):
            self._put_data(file, rows)
            self._mark(file, rows)
        nbytes = sum(row.nbytes for lead in rows.values() for row in lead)
        written = Written((*where, first), self._rank, start, clock.time(), nbytes)
        self._record(diagnostic, sorted(rows), written)

    def _put_data(self, file: File, rows: dict[int, list[np.ndarray]]) -> None:
        diagnostic, where, first = file

        def put(i: int) -> None:
            name = str(self._diagnostics[diagnostic]["variable"][i])
            self._put_variable(name, where, first, {k: v[i] for k, v in rows.items()})

        # One variable is compressed while another one is synced.
        list(self._threads.map(put, range(len(self._diagnostics[diagnostic]["variable"]))))

    def _mark(self, file: File, leads: Iterable[int]) -> None:
        self._marks.set(*file, leads)
        if not self._destination.is_there():
            raise StoreError("somebody removed or replaced it during the run")

    def _record(self, diagnostic: str, leads: Sequence[int], written: Written) -> None:
        if self._events is None:
            return
        seconds = (written.end - written.start) / len(leads)
        for i, lead in enumerate(leads):
            begun = written.start + i * seconds
            label = f"{diagnostic}{self._words(written.place[:-1], lead)}"
            nbytes = written.nbytes // len(leads)
            self._events.record(Event("write", label, written.rank, begun, begun + seconds, nbytes))

    @contextmanager
    def _naming(self, diagnostic: str, where: tuple[int, ...], lead: int) -> Iterator[None]:
        """Name the step and the store in an error."""
        try:
            yield
        except Exception as error:
            raise StoreError(
                f"{diagnostic}{self._words(where, lead)} could not be written to "
                f"{self._path}: {type(error).__name__}: {error}"
            ) from error

    def _put_variable(
        self, name: str, where: tuple[int, ...], first: int, rows: dict[int, np.ndarray]
    ) -> None:
        array = self._arrays[name]
        if self._marks.leads == 1:
            _set(array, where, slice(first, first + 1), rows[first][np.newaxis])
            return
        whole = self._marks.file(first)
        if self._marks.lacking_in_file(array.attrs["diagnostic"], where, first) < (
            whole.stop - whole.start
        ):
            values = np.asarray(array[(*where, whole)])  # what earlier runs wrote stays
        else:
            # Zarr would read what is there, which a lost node may have left half written.
            self._destination.remove(self._file_name(name, where, first))
            values = np.full((whole.stop - whole.start, *array.shape[len(where) + 1 :]), np.nan)
        for lead, row in rows.items():
            values[lead - first] = row
        _set(array, where, whole, values)

    def _words(self, where: tuple[int, ...], lead: int) -> str:
        lead_time = self._axes["lead_time"][lead : lead + 1]
        return step_words(OrderedDict(self._axes, lead_time=lead_time), where)


def _set(array: zarr.Array, where: tuple[int, ...], leads: slice, values: np.ndarray) -> None:
    # With all dimensions of a chunk; else Zarr fills one and copies the values into it.
    array[(*(slice(i, i + 1) for i in where), leads)] = values[(np.newaxis,) * len(where)]
