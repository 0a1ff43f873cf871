"""Statistics of a step, from the chunks of its members, once all of them are complete.

They are computed from what is stored, so their bytes do not depend on the order in which members
arrive, and a resumed run needs nothing but the store.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np

from distinf.coords import Coords, step_words
from distinf.errors import ConfigError, StoreError
from distinf.options import Output, Statistics
from distinf.statistics import (
    statistic_attributes,
    statistic_names,
    statistics,
)
from distinf.store.chunks import Chunks, File, Marks
from distinf.store.schema import StoreLayout, statistics_of

_BYTES = 2**27  # of all members that are held at once


def check_statistics(
    output: Output, members: np.ndarray | None, diagnostics: Mapping[str, Coords]
) -> None:
    """Refuse ``output.statistics`` that cannot be computed from these results.

    Raises `ConfigError` if there are no members, a variable with thresholds is not stored, or
    nothing is kept of a diagnostic.
    """
    wanted = output.statistics
    if wanted is None:
        return
    if members is None:
        raise ConfigError("output.statistics: a run without parameters.ensemble has no members")
    if wanted.std and len(members) < 2:
        raise ConfigError("output.statistics.std: one member has no standard deviation")
    stored = [str(v) for coords in diagnostics.values() for v in coords["variable"]]
    if unknown := [name for name in wanted.exceedance if name not in stored]:
        raise ConfigError(
            f"output.statistics.exceedance: {', '.join(unknown)} is not stored; stored are "
            f"{', '.join(stored)}"
        )
    made = [name for coords in diagnostics.values() for name in _names(wanted, coords)]
    if clash := {name for name in made if name in stored or made.count(name) > 1}:
        raise ConfigError(
            f"output.statistics: {', '.join(sorted(clash))} would be two variables; rename one by "
            "diagnostic.<name>.rename"
        )
    for name, coords in diagnostics.items():
        if not output.members and not _names(wanted, coords):
            raise ConfigError(
                f"output.members=false: output.statistics keeps nothing of {name}; choose a "
                "statistic of it, or leave it out"
            )


def _names(wanted: Statistics, coords: Coords) -> list[str]:
    return [name for v in coords["variable"] for name in statistic_names(wanted, str(v))]


def statistics_layout(layout: StoreLayout, wanted: Statistics) -> StoreLayout:
    """Layout of the statistics of each diagnostic of a layout with members."""
    diagnostics, attributes = {}, {}
    for name, coords in layout.diagnostics.items():
        names = _names(wanted, coords)
        if not names:  # thresholds of another diagnostic's variables only
            continue
        own = OrderedDict((k, v) for k, v in coords.items() if k != "ensemble")
        diagnostics[statistics_of(name)] = OrderedDict(own, variable=np.array(names))
        for variable in map(str, coords["variable"]):
            about = layout.attributes.get(variable, {})
            attributes.update(statistic_attributes(wanted, variable, about))
    return dataclasses.replace(
        layout, diagnostics=diagnostics, attributes=attributes, ensemble=None
    )


class MemberStatistics:
    """Computes and writes the statistics of a store.

    ``members`` and ``marks`` are the members' chunks and marks, with ``layout``; ``results`` and
    ``done`` those of the statistics. Without ``keep``, data of members is removed when no statistic
    needs it any more.
    """

    def __init__(
        self,
        wanted: Statistics,
        layout: StoreLayout,
        members: Chunks,
        marks: Marks,
        results: Chunks,
        done: Marks,
        keep: bool,
    ) -> None:
        import earth2studio.statistics  # noqa: F401 - now, not between two writes

        self._wanted, self._layout, self._keep = wanted, layout, keep
        self._members, self._marks = members, marks
        self._results, self._done = results, done
        self._turn = threading.Lock()
        self._begun: set[tuple[str, int, int]] = set()

    @property
    def is_complete(self) -> bool:
        """Whether every statistic is in the store."""
        done, total = self._done.counts
        return done == total

    def look(self, file: File, leads: Iterable[int]) -> None:
        """Compute the statistics of these lead times of a file, if all their members are complete.

        Raises `StoreError` if they cannot be written.
        """
        name, time = file.diagnostic, file.index[-1]
        if statistics_of(name) not in self._done.names:
            return
        for lead in leads:
            step = (name, time, lead)
            with self._turn:
                ready = self._marks.in_all_members(name)[time, lead] and step not in self._begun
                if ready:
                    self._begun.add(step)
            if ready and not self._done.has(statistics_of(name), (time, lead)):
                self._compute(*step)
                self._remove(*step)

    def catch_up(self) -> None:
        """Compute what an interrupted run did not come to, and remove what it left."""
        for name in self._layout.diagnostics:
            for time, lead in np.argwhere(self._marks.in_all_members(name)).tolist():
                self.look(File(name, (0, time), self._marks.first_of_file(lead)), [lead])
                self._remove(name, time, lead)

    def verify(self) -> list[str]:
        """Read back every statistic; unmark and return those that are damaged, in words.

        Their members are unmarked, too, if their data is no longer there.
        """
        damaged = self._results.verify()
        if damaged and not self._keep:
            for name in self._layout.diagnostics:
                there = self._marks.in_all_members(name)
                for time, lead in np.argwhere(there).tolist():
                    if not self._done.has(statistics_of(name), (time, lead)):
                        self._unmark(name, time, lead)
        return damaged

    def _unmark(self, name: str, time: int, lead: int) -> None:
        for member in range(self._marks.number_of_members):
            file = File(name, (member, time), self._marks.first_of_file(lead))
            self._marks.set(file, [lead], complete=False)

    def finish(self) -> None:
        """Write what waits for other lead times of its file; raises `StoreError`."""
        self._results.finish()

    def needs(self, file: File) -> bool:
        """Whether the members' data of a file must be in the store."""
        result = statistics_of(file.diagnostic)
        if self._keep or result not in self._done.names:
            return True
        steps = self._marks.steps(file)[-1]
        leads = range(steps.start, steps.stop)
        return not all(self._done.has(result, (file.index[-1], lead)) for lead in leads)

    def _compute(self, name: str, time: int, lead: int) -> None:
        import torch

        coords = self._layout.diagnostics[name]
        own = self._done.coords(time, lead)
        try:
            variables = [str(v) for v in coords["variable"]]
            rows = [row for v in variables for row in self._of_variable(v, time, lead)]
        except Exception as error:  # of a codec, of the file system
            raise StoreError(
                f"{name}{step_words(own)}: its members cannot be read back "
                f"({type(error).__name__}: {error}); output.mode=resume with output.verify=true "
                "computes again what is damaged"
            ) from error
        result = OrderedDict(self._results.layout.diagnostics[statistics_of(name)], **own)
        x = np.stack(rows, axis=list(result).index("variable") - len(own))[np.newaxis, np.newaxis]
        self._results.add(statistics_of(name), torch.from_numpy(x), result)

    def _of_variable(self, variable: str, time: int, lead: int) -> list[np.ndarray]:
        array = self._members.arrays[variable]
        members, grid = range(array.shape[0]), array.shape[3:]
        points, at_once = int(np.prod(grid)), max(1, _BYTES // (4 * len(members)))
        parts = []
        for first in range(0, points, at_once):
            block = slice(first, first + at_once)
            held = np.stack([np.ravel(array[i, time, lead])[block] for i in members])
            parts.append(list(statistics(self._wanted, variable, held).values()))
        return [np.concatenate(blocks).reshape(grid) for blocks in zip(*parts, strict=True)]

    def _remove(self, name: str, time: int, lead: int) -> None:
        """Remove the members' data of the file of a step, if nothing needs it any more."""
        first = self._marks.first_of_file(lead)
        if not self.needs(File(name, (0, time), first)):
            for member in range(self._marks.number_of_members):
                self._members.remove(File(name, (member, time), first))
