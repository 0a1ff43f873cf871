"""From a plain mapping to typed options, with one clear error for a misspelt key or a wrong value.

Without torch, so that a wrong config is answered at once. Each class of options declares what its
values may be; pydantic checks that, and its first finding becomes one line: the key, its value and
what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_type_hints

from pydantic import ConfigDict, Field, PlainValidator, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic.fields import FieldInfo

from distinf.errors import ConfigError

T = TypeVar("T")

# The description of a type completes the sentence "key=value: ...".
Count = Annotated[int, Field(ge=1, description="must be a whole number, at least 1")]
_Seconds = Annotated[float, Field(gt=0, description="must be a number of seconds above 0")]
_Names = Annotated[Sequence[str], Field(description="must be a list such as [t2m,msl]")]


def valid_when(test: Callable[[Any], object], right: str) -> Any:
    """Declare a value by a test of it: ``Annotated[T, *valid_when(...)]``; ``right`` as above."""

    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError
        return value

    return PlainValidator(check), Field(description=right)


def options_dataclass(where: str) -> Any:
    """Make a class of options; its constructor raises `ConfigError` with keys below ``where``."""

    @dataclass_transform(frozen_default=True)
    def declare(kind: type[T]) -> type[T]:
        made: Any = checked_dataclass(frozen=True, config=ConfigDict(strict=True))(kind)
        made._construct = made.__init__

        def construct(self: Any, *args: Any, **kwargs: Any) -> None:
            _construct(self, where, *args, **kwargs)

        made.__init__ = construct
        return made  # type: ignore[no-any-return]

    return declare


def _construct(made: Any, where: str, *args: Any, **kwargs: Any) -> None:
    try:
        made._construct(*args, **kwargs)
        return
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        raise cause
    name = str(first["loc"][0]) if first["loc"] else ""
    if name not in kwargs:
        raise TypeError(f"{type(made).__name__}: {name} {first['msg']}")
    hint = get_type_hints(type(made), include_extras=True)[name]
    value = kwargs[name]
    if isinstance(value, str) and len(value.split()) != 1:
        value = repr(value)
    raise ConfigError(f"{where}.{name}={value}: {_right(hint)}")


def option_names(kind: Any) -> list[str]:
    """Return the keys of a class of options."""
    return [field.name for field in dataclasses.fields(kind)]


def _right(hint: Any) -> str:
    """Say what a value with this type hint may be."""
    inner = list(_flat(hint))
    null = type(None) in inner
    for described in inner:
        if isinstance(described, FieldInfo) and described.description:
            return described.description + ", or null" * null
    choices = [own for own in inner if isinstance(own, str)]
    verb = "choose" if choices else "must be"
    *first, last = [*(choices or ["true", "false"]), *(["null"] * null)]
    return f"{verb} {', '.join(first)} or {last}"


def _flat(hint: Any) -> Iterator[Any]:
    yield hint
    for inner in (*get_args(hint), *getattr(hint, "__metadata__", ())):
        yield from _flat(inner)


@options_dataclass("runtime")
class Runtime:
    """Options of a session; ``runtime.*`` of the config.

    Parameters
    ----------
    nproc : int | None
        Ranks to start on this machine when no launcher did; 1: everything in this process. By
        default None: `session` starts none, and ``python main.py`` as many as GPUs, at least 2; 3
        on a machine without.
    carrier : str
        How tensors travel: ``"cuda"`` (device to device), ``"host"`` (through host memory),
        ``"auto"``, by default: the first where it has been seen to work at start, else the second.
    results : str
        Where results are given to the caller: ``"host"`` memory, by default, or the driver's
        ``"device"``, for an application that goes on computing there.
    threads : int
        Compute threads of each rank on the CPU, by default 1. Set here because launchers
        differ in it, and some operations' last bits depend on it.
    seed : int
        Of all random draws, by default 0; see `distinf.seeds.task_seed`.
    batch : int
        Dates and members that a recipe's prognostic steps together, by default 1.
    start_timeout : float
        Seconds within which all ranks must have found each other, by default 120.
    call_timeout : float | None
        Seconds that one attempt of a diagnostic call may take before its worker is given up,
        by default 3600; None: as long as the worker's process lives.
    max_attempts : int
        Workers that may be lost while computing one and the same task before the run fails,
        by default 3.
    liveness_timeout : float
        Seconds without any sign of life after which a worker is lost, by default 60.
    on_error : str
        What an error of a model does: ``"fail"``, by default, ends the run once what is in flight
        has been written; ``"skip"`` leaves the task out and goes on.
    nonfinite : str
        What NaN or an infinite value in a result is: ``"allow"``, ``"warn"``, by default, or
        ``"fail"``, an error of the model. A recipe's ``diagnostic.<name>.nonfinite`` comes before
        it.
    driver_works : str
        Whether rank 0 runs diagnostics, too: ``"never"``, ``"fallback"``, by default, when no
        worker is left; ``"idle"``, also while the prognostic waits for a free worker.
    expect_ranks : int | None
        How many ranks there must be, by default None: as many as the launcher started.
    interface : str | None
        Network interface on which ranks of several nodes talk, by default None: the one that
        leads to rank 0. On one node they stay on loopback.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    nproc: Count | None = None
    carrier: Literal["auto", "cuda", "host"] = "auto"
    results: Literal["host", "device"] = "host"
    threads: Count = 1
    seed: Annotated[int, Field(ge=0, description="must be a whole number, at least 0")] = 0
    batch: Count = 1
    start_timeout: _Seconds = 120.0
    call_timeout: _Seconds | None = 3600.0
    max_attempts: Count = 3
    liveness_timeout: _Seconds = 60.0
    on_error: Literal["fail", "skip"] = "fail"
    nonfinite: Literal["allow", "warn", "fail"] = "warn"
    driver_works: Literal["never", "fallback", "idle"] = "fallback"
    expect_ranks: Count | None = None
    interface: str | None = None


def _check_region(region: Any) -> Any:
    if region is None:
        return None
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
    return region


@options_dataclass("output")
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

    mode: Literal["create", "overwrite", "resume"] = "create"
    writer: Literal["driver", "workers"] = "driver"
    writers: Count = 2
    prognostic_variables: _Names = ()
    variables: _Names | None = None
    region: Annotated[Mapping[str, Sequence[float]] | None, PlainValidator(_check_region)] = None
    every: Count = 1
    shards: Count | None = None
    netcdf: Annotated[str | None, Field(description="name a file, such as forecast.nc")] = None
    check_space: bool = True
    verify: bool = False
    restart_every: Count | None = 10

    def __post_init__(self) -> None:
        if self.writer == "workers" and self.shards is not None:
            raise ConfigError(
                f"output.writer=workers and output.shards={self.shards}: the lead times of one "
                "file are computed by several workers; leave one of the two out"
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
    """Make options, of a class by `options_dataclass`, from a section; raise `ConfigError`."""
    check_keys(given, option_names(kind), where)
    made = object.__new__(kind)
    _construct(made, where, **given)
    return made


# Names that stand in older configs and stores, and what they are called now.
_MOVED = {
    f"distinf.fields.{name}": f"distinf.models.{name}"
    for name in ("FileSource", "RandomFields", "persistence", "replay")
}


def current_targets(section: Any) -> tuple[Any, dict[str, str]]:
    """Replace old names of targets in a config; return it, and for each old name the new one."""
    moved: dict[str, str] = {}

    def replaced(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {key: replaced(own, key) for key, own in value.items()}
        if isinstance(value, list):
            return [replaced(own) for own in value]
        if key == "_target_" and value in _MOVED:
            moved[value] = value = _MOVED[value]
        return value

    return replaced(section), moved
