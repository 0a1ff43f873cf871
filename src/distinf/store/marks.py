"""Which steps are in the store: its completeness marks, and the questions asked of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import zarr

from distinf.coords import Coords
from distinf.errors import StoreError
from distinf.store.schema import mark

__all__ = ["Marks", "step_words"]


class Marks:
    """The marks of a store's diagnostics, as they were when this run began and since.

    Parameters
    ----------
    group : zarr.Group
        The store.
    axes : Coords
        Its leading dimensions: (ensemble,) time, lead_time.
    diagnostics : Iterable[str]
        Their names.
    path : str
        Of the store, for messages.
    """

    def __init__(
        self, group: zarr.Group, axes: Coords, diagnostics: Iterable[str], path: str
    ) -> None:
        self._axes, self._path = axes, path
        self._arrays = {name: group[mark(name)] for name in diagnostics}
        self._done = {name: _read(array) for name, array in self._arrays.items()}
        self.leads: int = next(iter(self._arrays.values())).chunks[-1]
        """Lead times in one file."""

    def where(self, diagnostic: str, coords: Mapping[str, Any]) -> tuple[int, ...]:
        """Index of the first step of these coords in the leading dimensions.

        Raises
        ------
        StoreError
            If the store has no such step.
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
        return bool(self._done[diagnostic][self.where(diagnostic, coords)])

    def lacking(self, coords: Mapping[str, Any]) -> list[str]:
        """Diagnostics whose result for a state with these coords is to be stored, and is not."""
        if coords["lead_time"][-1] not in self._axes["lead_time"]:
            return []
        where = {**coords, "lead_time": coords["lead_time"][-1:]}
        return [name for name in self._done if not self.is_complete(name, where)]

    def incomplete(self, times: np.ndarray, members: np.ndarray | None) -> tuple[int, int] | None:
        """First and last index of the lead times that any of these forecasts lacks, or None."""
        done = np.logical_and.reduce(list(self._done.values()))
        axes = [times] if members is None else [members, times]
        names = [name for name in self._axes if name != "lead_time"]
        where = [np.isin(self._axes[name], own) for name, own in zip(names, axes, strict=True)]
        lacking = np.flatnonzero(~done[np.ix_(*where)].reshape(-1, done.shape[-1]).all(axis=0))
        return (int(lacking[0]), int(lacking[-1])) if len(lacking) else None

    @property
    def counts(self) -> tuple[int, int]:
        """How many tasks are complete, and how many there are."""
        return sum(int(m.sum()) for m in self._done.values()), sum(
            m.size for m in self._done.values()
        )

    def file(self, first: int) -> slice:
        """Lead times of the file that begins at ``first``."""
        return slice(first, min(first + self.leads, len(self._axes["lead_time"])))

    def lacking_in_file(self, diagnostic: str, where: tuple[int, ...], first: int) -> int:
        """How many lead times of a file are not in the store."""
        done = self._done[diagnostic][where][self.file(first)]
        return int(done.size - done.sum())

    def set(
        self,
        diagnostic: str,
        where: tuple[int, ...],
        first: int,
        leads: Iterable[int],
        complete: bool = True,
    ) -> None:
        """Mark lead times of one file, in the store first."""
        whole = self.file(first)
        done = self._done[diagnostic][where][whole].copy()
        done[[lead - first for lead in leads]] = complete
        self._arrays[diagnostic][(*where, whole)] = done
        self._done[diagnostic][where][whole] = done

    def marked_files(self) -> list[tuple[str, tuple[int, ...], int, list[int]]]:
        """Every file with complete steps: its diagnostic, place, first and complete leads."""
        found = []
        for name, done in self._done.items():
            for where in np.ndindex(*done.shape[:-1]):
                for first in range(0, done.shape[-1], self.leads):
                    leads = np.flatnonzero(done[where][self.file(first)])
                    if len(leads):
                        found.append((name, where, first, [first + int(i) for i in leads]))
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
                except Exception:  # what says nothing is computed again
                    marks[file] = False
        return done


def step_words(coords: Mapping[str, Any], where: tuple[int, ...] = ()) -> str:
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
