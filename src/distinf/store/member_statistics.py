"""Statistics and CRPS of a step, from the chunks of its members, once all of them are complete.

They are computed from what is stored, so their bytes do not depend on the order in which members
arrive, and a resumed run needs nothing but the store.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from distinf.coords import Coords, step_words
from distinf.errors import ConfigError, StoreError
from distinf.options import Output, Statistics
from distinf.statistics import (
    are_scores,
    area_weights,
    crps,
    statistic_attributes,
    statistic_names,
    statistics,
)
from distinf.store.chunks import Chunks, File, Marks
from distinf.store.schema import StoreLayout, crps_of, statistics_of

_BYTES = 2**27  # of all members that are held at once


@dataclass(frozen=True)
class Verified:
    """What the members are compared with.

    ``variables`` are those of each diagnostic, by their names in the store. ``read`` is given the
    name of the diagnostic, a valid time and the coords of the fields, and returns the fields
    [variable, ...]; it raises `ConfigError` if they are not there.
    """

    variables: Mapping[str, Sequence[str]]
    read: Callable[[str, np.datetime64, Coords], np.ndarray]


def check_statistics(
    output: Output, members: np.ndarray | None, diagnostics: Mapping[str, Coords]
) -> None:
    """Refuse ``output.statistics`` that cannot be computed from these results.

    Raises `ConfigError` if there are no members, a variable with thresholds is not stored, or
    nothing is kept of a diagnostic.
    """
    wanted = output.statistics
    diagnostics = {k: v for k, v in diagnostics.items() if not are_scores(k)}
    stored = [str(v) for coords in diagnostics.values() for v in coords["variable"]]
    compared = output.verification is not None and members is not None
    names = {*stored, *diagnostics} if compared else set()
    if clash := {crps_of(name) for name in names} & names:
        raise ConfigError(
            f"output.verification: {', '.join(sorted(clash))} would be two variables; rename one "
            "by diagnostic.<name>.rename"
        )
    if wanted is None:
        return
    if members is None:
        raise ConfigError("output.statistics: a run without parameters.ensemble has no members")
    if wanted.std and len(members) < 2:
        raise ConfigError("output.statistics.std: one member has no standard deviation")
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


def statistics_layout(
    layout: StoreLayout, wanted: Statistics | None, verified: Verified | None
) -> StoreLayout:
    """Layout of the statistics and the CRPS of each diagnostic of a layout with members."""
    diagnostics, attributes = {}, {}
    for name, coords in layout.diagnostics.items():
        names = [] if wanted is None or are_scores(name) else _names(wanted, coords)
        own = OrderedDict((k, v) for k, v in coords.items() if k != "ensemble")
        if names:  # else thresholds of another diagnostic's variables only
            diagnostics[statistics_of(name)] = OrderedDict(own, variable=np.array(names))
        for variable in map(str, coords["variable"]):
            about = layout.attributes.get(variable, {})
            if wanted is not None and names:
                attributes.update(statistic_attributes(wanted, variable, about))
        compared = [] if verified is None else list(verified.variables.get(name, ()))
        if compared:
            scalar = OrderedDict((k, v) for k, v in own.items() if k not in ("lat", "lon"))
            scores = np.array([crps_of(variable) for variable in compared])
            diagnostics[crps_of(name)] = OrderedDict(scalar, variable=scores)
        for variable in compared:
            about = dict(layout.attributes.get(variable, {}))
            about["long_name"] = f"CRPS of {about.get('long_name', variable)}"
            attributes[crps_of(variable)] = {
                k: v for k, v in about.items() if k in ("units", "long_name")
            }
    return dataclasses.replace(
        layout, diagnostics=diagnostics, attributes=attributes, ensemble=None
    )


class MemberStatistics:
    """Computes and writes the statistics and the CRPS of a store.

    ``members`` and ``marks`` are the members' chunks and marks, with ``layout``; ``results`` and
    ``done`` those of the statistics. Without ``keep``, data of members is removed when no statistic
    needs it any more.
    """

    def __init__(
        self,
        wanted: Statistics | None,
        verified: Verified | None,
        layout: StoreLayout,
        members: Chunks,
        marks: Marks,
        results: Chunks,
        done: Marks,
        keep: bool,
    ) -> None:
        import earth2studio.statistics  # noqa: F401 - now, not between two writes

        self._wanted, self._verified = wanted, verified
        self._layout, self._keep = layout, keep
        self._members, self._marks = members, marks
        self._results, self._done = results, done
        self._turn = threading.Lock()
        self._begun: set[tuple[str, int, int]] = set()

    @property
    def is_complete(self) -> bool:
        """Whether every statistic is in the store."""
        done, total = self._done.counts
        return done == total

    def results_of(self, name: str) -> list[str]:
        """Names under which something is computed of a diagnostic's members."""
        return [r for r in (statistics_of(name), crps_of(name)) if r in self._done.names]

    def look(self, file: File, leads: Iterable[int]) -> None:
        """Compute the statistics of these lead times of a file, if all their members are complete.

        Raises `StoreError` if they cannot be written.
        """
        name, time = file.diagnostic, file.index[-1]
        if not self.results_of(name):
            return
        for lead in leads:
            step = (name, time, lead)
            with self._turn:
                ready = self._marks.in_all_members(name)[time, lead] and step not in self._begun
                if ready:
                    self._begun.add(step)
            if ready and not self._is_done(*step):
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
                    if not self._is_done(name, time, lead):
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
        if self._keep or not self.results_of(file.diagnostic):
            return True
        steps = self._marks.steps(file)[-1]
        leads = range(steps.start, steps.stop)
        return not all(self._is_done(file.diagnostic, file.index[-1], lead) for lead in leads)

    def _is_done(self, name: str, time: int, lead: int) -> bool:
        """Whether all that is computed of a diagnostic's members is in the store."""
        return all(self._done.has(result, (time, lead)) for result in self.results_of(name))

    def _compute(self, name: str, time: int, lead: int) -> None:
        computes = {statistics_of(name): self._statistics, crps_of(name): self._crps}
        for result in self.results_of(name):
            if not self._done.has(result, (time, lead)):
                self._add(result, name, (time, lead), computes[result])

    def _add(
        self, result: str, name: str, step: tuple[int, int], compute: Callable[..., list[Any]]
    ) -> None:
        import torch

        own = self._done.coords(*step)
        try:
            rows = compute(name, *step)
        except ConfigError:
            raise
        except Exception as error:  # of a codec, of the file system
            raise StoreError(
                f"{name}{step_words(own)}: its members cannot be read back "
                f"({type(error).__name__}: {error}); output.mode=resume with output.verify=true "
                "computes again what is damaged"
            ) from error
        coords = OrderedDict(self._results.layout.diagnostics[result], **own)
        x = np.stack(rows, axis=list(coords).index("variable") - len(own))[np.newaxis, np.newaxis]
        self._results.add(result, torch.from_numpy(x), coords)

    def _statistics(self, name: str, time: int, lead: int) -> list[np.ndarray]:
        assert self._wanted is not None
        found = []
        for variable in map(str, self._layout.diagnostics[name]["variable"]):
            of = partial(statistics, self._wanted, variable)
            parts = [list(of(held).values()) for _, held in self._blocks(variable, time, lead)]
            grid = self._members.arrays[variable].shape[3:]
            found += [np.concatenate(own).reshape(grid) for own in zip(*parts, strict=True)]
        return found

    def _crps(self, name: str, time: int, lead: int) -> list[np.ndarray]:
        assert self._verified is not None
        own = self._done.coords(time, lead)
        variables = list(self._verified.variables[name])
        coords = OrderedDict(self._layout.diagnostics[name], variable=np.array(variables))
        valid = own["time"][0] + own["lead_time"][0]
        truth = self._verified.read(name, valid, coords)
        weights = area_weights(coords["lat"], coords["lon"]).ravel()
        found = []
        for variable, field in zip(variables, truth, strict=True):
            blocks = self._blocks(variable, time, lead)
            parts = [crps(held, field.ravel()[block]) for block, held in blocks]
            score = np.average(np.concatenate(parts), weights=weights)
            found.append(np.asarray(score, np.float32))
        return found

    def _blocks(self, variable: str, time: int, lead: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Read so many points at once that all members fit; yield which, and [member, point]."""
        array = self._members.arrays[variable]
        members, points = range(array.shape[0]), int(np.prod(array.shape[3:]))
        at_once = max(1, _BYTES // (4 * len(members)))
        for first in range(0, points, at_once):
            block = slice(first, first + at_once)
            yield block, np.stack([np.ravel(array[i, time, lead])[block] for i in members])

    def _remove(self, name: str, time: int, lead: int) -> None:
        """Remove the members' data of the file of a step, if nothing needs it any more."""
        first = self._marks.first_of_file(lead)
        if not self.needs(File(name, (0, time), first)):
            for member in range(self._marks.number_of_members):
                self._members.remove(File(name, (member, time), first))
