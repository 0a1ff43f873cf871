"""An archive: which states a data source has, and reading one of them."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from distinf.coords import Coords, State
from distinf.errors import ConfigError
from distinf.loading.preflight import unreachable, unread


class Archive:
    """The states of a data source.

    Parameters
    ----------
    source : DataSource | ForecastSource
        One of Earth2Studio's data sources, or one of distinf's. What it has is known if it has
        ``coords`` (`FileSource`) or ``da`` (Earth2Studio's sources on xarray).
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._name = type(source).__name__
        self._turn = threading.Lock()  # sources need not allow two threads
        self._grid: Coords | None = getattr(source, "grid", None)

    @property
    def times(self) -> np.ndarray | None:
        """Its times, datetime64[ns]; None if it does not list them."""
        return self._listed("time", "datetime64[ns]")

    @property
    def lead_times(self) -> np.ndarray | None:
        """Its lead times, timedelta64[ns]; None if it has none or does not list them."""
        return self._listed("lead_time", "timedelta64[ns]")

    @property
    def members(self) -> np.ndarray | None:
        """Members of its ensemble, int64; None without one."""
        return self._listed("ensemble", "int64") if hasattr(self._source, "member") else None

    @property
    def variables(self) -> list[str] | None:
        """Names of its variables; None if the source does not list them."""
        found = getattr(self._source, "variables", None)
        if found is None:
            found = self._listed("variable", "str")
        return None if found is None else [str(name) for name in found]

    def coords(self, step: Coords, variables: Sequence[str]) -> Coords:
        """Coords of the state of a step; of a source that does not know its grid one is read.

        Raises `ConfigError` if the source lists its variables and lacks some, or cannot be reached.
        """
        there = self.variables
        if there is not None and (missing := [name for name in variables if name not in there]):
            raise ConfigError(
                f"the data does not have the variables {', '.join(missing)}; it has "
                f"{', '.join(there)}"
            )
        if self._grid is None:
            _, read = self.read(step, variables)
            self._grid = OrderedDict(list(read.items())[len(step) + 1 :])
        return OrderedDict(step, variable=np.array(variables), **self._grid)

    def read(self, step: Coords, variables: Sequence[str]) -> State:
        """Read a state [(ensemble=1,) time=1, lead_time=1, variable, ...] on the host, float32.

        Raises `ConfigError` if the source does not have it or cannot be reached.
        """
        from earth2studio.data import fetch_data

        source = self._source
        if "ensemble" in step:
            source = source.member(int(step["ensemble"][0]))
        try:
            with self._turn:
                x, coords = fetch_data(
                    source=source,
                    time=step["time"],
                    variable=np.array(variables),
                    lead_time=step["lead_time"],
                    device="cpu",
                )
        except Exception as error:
            if (why := unreachable(error)) is None:
                raise
            raise ConfigError(unread(self._name, why)) from error
        grid = OrderedDict(list(coords.items())[3:])
        x = x.float()
        state: Coords = OrderedDict(step, variable=np.array(variables), **grid)
        return (x.unsqueeze(0) if "ensemble" in step else x), state

    def _listed(self, dim: str, dtype: str) -> np.ndarray | None:
        """Values of a coordinate, if the source has and lists it."""
        coords = getattr(self._source, "coords", None)
        if coords is None:
            coords = getattr(getattr(self._source, "da", None), "coords", {})
        if dim not in coords:
            return None
        return np.atleast_1d(np.asarray(coords[dim].values)).astype(dtype)


class ArchiveSteps:
    """The steps of an archive that a run takes; iterating gives the coords of each.

    Parameters
    ----------
    source : DataSource | ForecastSource
        As for `Archive`.
    times : np.ndarray | None, optional
        Times, datetime64[ns], by default all that it lists.
    lead_times : np.ndarray | None, optional
        Lead times, timedelta64[ns], by default all that it lists, or 0 h.
    members : np.ndarray | None, optional
        Members, int64, by default all that it lists.
    every : int, optional
        Take every so many-th lead time, by default 1.

    Attributes
    ----------
    times, lead_times, members : np.ndarray
        What is taken; ``members`` is None without an ensemble.

    Raises
    ------
    ConfigError
        If the times are not given and the source does not list them, or there are no such members.
    """

    def __init__(
        self,
        source: Any,
        times: np.ndarray | None = None,
        lead_times: np.ndarray | None = None,
        members: np.ndarray | None = None,
        every: int = 1,
    ) -> None:
        archive = Archive(source)
        times = archive.times if times is None else times
        if times is None:
            raise ConfigError(
                f"parameters.time=null: {type(source).__name__} does not list its times; name them"
            )
        lead_times = archive.lead_times if lead_times is None else lead_times
        if lead_times is None:
            lead_times = np.array([0], "timedelta64[ns]")
        there = archive.members
        if members is not None and (
            there is None or (unknown := np.setdiff1d(members, there)).size
        ):
            has = "no members" if there is None else f"the members {', '.join(map(str, there))}"
            asked = members if there is None else unknown
            raise ConfigError(f"parameters.ensemble={asked.tolist()}: the data has {has}")
        self.times, self.lead_times = times, lead_times[::every]
        self.members = there if members is None else members

    def __iter__(self) -> Iterator[Coords]:
        """Yield the coords (ensemble=1,) time=1, lead_time=1 of each step."""
        members = [None] if self.members is None else self.members
        for time, member, lead_time in itertools.product(self.times, members, self.lead_times):
            ensemble = {} if member is None else {"ensemble": np.array([member])}
            yield OrderedDict(ensemble, time=np.array([time]), lead_time=np.array([lead_time]))
