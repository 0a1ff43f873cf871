"""From a plain mapping to typed options, with one clear error for a misspelt key.

Without torch, so that a wrong config is answered at once.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from distinf.errors import ConfigError

__all__ = ["Output", "check_keys", "from_mapping"]

T = TypeVar("T")
_MODES = ("create", "overwrite", "resume")
_WRITERS = ("driver", "workers")


@dataclass(frozen=True)
class Output:
    """What is stored and how; ``output.*`` of the config.

    Parameters
    ----------
    mode : str
        ``"create"`` refuses an existing store, ``"overwrite"`` replaces it, ``"resume"``
        continues it and creates one where there is none; by default ``"create"``.
    writer : str
        ``"driver"``, by default, or ``"workers"``: each writes its own results, into a store that
        all ranks reach; not with ``shards``.
    writers : int
        Threads of the driver that write, by default 2.
    prognostic_variables : list[str]
        Variables of the prognostic that are stored as well, by default none.
    variables : list[str] | None
        Variables of the diagnostics that are stored, by default None: all.
    region : Mapping[str, list[float]] | None
        ``lat: [south, north]`` and ``lon: [west, east]`` in degrees, by default None: the whole
        grid.
    every : int
        Every how many lead times are diagnosed and stored, by default 1.
    shards : int | None
        Lead times in one file (a Zarr shard), by default None: one file for each.
    netcdf : str | None
        A NetCDF file that is written as well at the end of the run, by default None. ``mode``
        holds for it, too: ``"overwrite"`` replaces what distinf made, ``"resume"`` a copy of the
        same store.
    check_space : bool
        Whether a run that may not fit on the disk is refused, by default True.
    verify : bool
        Whether a resumed store is read back first, and what is damaged computed again, by default
        False.
    restart_every : int | None
        Steps between saved states of a prognostic that can restart from them, by default 10; None:
        none is saved. They lie in the store until its forecast is complete.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    mode: str = "create"
    writer: str = "driver"
    writers: int = 2
    prognostic_variables: Sequence[str] = ()
    variables: Sequence[str] | None = None
    region: Mapping[str, Sequence[float]] | None = None
    every: int = 1
    shards: int | None = None
    netcdf: str | None = None
    check_space: bool = True
    verify: bool = False
    restart_every: int | None = 10

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ConfigError(f"output.mode={self.mode}: choose one of {', '.join(_MODES)}")
        if self.writer not in _WRITERS:
            raise ConfigError(f"output.writer={self.writer}: choose one of {', '.join(_WRITERS)}")
        if self.writer == "workers" and self.shards is not None:
            raise ConfigError(
                f"output.writer=workers and output.shards={self.shards}: the lead times of one "
                "file are computed by several workers; leave one of the two out"
            )
        for name in ("writers", "every", "shards", "restart_every"):
            value = getattr(self, name)
            if value is None and name in ("shards", "restart_every"):
                continue
            if type(value) is not int or value < 1:  # YAML's `true` is an int to Python
                raise ConfigError(f"output.{name}={value}: must be a whole number, at least 1")
        for name in ("check_space", "verify"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"output.{name}={getattr(self, name)}: choose true or false")
        for name in ("prognostic_variables", "variables"):
            value = getattr(self, name)
            names = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
            if not names and (name == "prognostic_variables" or value is not None):
                raise ConfigError(f"output.{name}={value}: must be a list such as [t2m,msl]")
        if self.netcdf is not None and not isinstance(self.netcdf, str):
            raise ConfigError(f"output.netcdf={self.netcdf}: name a file, such as forecast.nc")
        if self.region is not None:
            _check_region(self.region)


def _check_region(region: Any) -> None:
    if not isinstance(region, Mapping) or not region:
        raise ConfigError(f"output.region={region}: must be like {{lat: [30, 60], lon: [-10, 40]}}")
    check_keys(region, ("lat", "lon"), "output.region")
    for key, values in region.items():
        numbers = isinstance(values, list | tuple) and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in values
        )
        if not numbers or len(values) != 2:
            raise ConfigError(f"output.region.{key}={values}: must be two numbers in degrees")
    south, north = region.get("lat", (-90, 90))
    if not -90 <= south <= north <= 90:
        raise ConfigError(
            f"output.region.lat={[south, north]}: must be the south and the north, within -90 to 90"
        )
    west, east = region.get("lon", (0, 360))
    if not (-180 <= west <= 360 and -180 <= east <= 360) or east - west > 360:
        raise ConfigError(
            f"output.region.lon={[west, east]}: must be the west and the east, within -180 to 360"
        )


def check_keys(given: Iterable[str], valid: Iterable[str], where: str) -> None:
    """Refuse keys that do not exist.

    Parameters
    ----------
    given, valid : Iterable[str]
        Keys that are there, keys that may be.
    where : str
        The section, such as ``"runtime"``; empty for the top level.

    Raises
    ------
    ConfigError
        Names the wrong key, the most similar valid one and all valid ones.
    """
    valid = sorted(valid)
    for key in given:
        if key not in valid:
            prefix = f"{where}." if where else ""
            close = difflib.get_close_matches(str(key), valid, n=1)
            meant = f" Did you mean {prefix}{close[0]}?" if close else ""
            raise ConfigError(
                f"{prefix}{key} does not exist.{meant} "
                f"Valid keys{' of ' + where if where else ''}: {', '.join(valid)}"
            )


def from_mapping(kind: type[T], given: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of options from a mapping.

    Parameters
    ----------
    kind : type
        A dataclass.
    given : Mapping[str, Any]
        Its values.
    where : str
        The section, for errors.

    Returns
    -------
    kind
        The options.

    Raises
    ------
    ConfigError
        If a key does not exist or a value is out of its range.
    """
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    check_keys(given, fields, where)
    return kind(**given)
