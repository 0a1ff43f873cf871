"""The options of a session, of the store and of the page about a run.

Imports no torch, so that a wrong config ends in a second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from distinf.errors import ConfigError
from distinf.typed_options import Count, check_keys, from_mapping, options_dataclass, valid_when

_Seconds = Annotated[float, Field(gt=0, description="must be a number of seconds above 0")]
_Names = Annotated[Sequence[str], Field(description="must be a list such as [t2m,msl]")]

_WORKERS = "must be a whole number, at least 1, or two of them: [least, most]"
_DRIVERS = "must be a whole number, at least 1, or auto"
_PORT = "must be a port from 1 to 65535, 0 for any free one"
_RESOURCES = "must be numbers of what Ray counts, such as {GPU: 1}"


def _is_number_of_workers(value: Any) -> bool:
    numbers = list(value) if isinstance(value, list | tuple) and len(value) == 2 else [value]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in numbers)
    return value is None or (whole and numbers == sorted(numbers))


def _is_number_of_drivers(value: Any) -> bool:
    return value == "auto" or (type(value) is int and value >= 1)


def _are_resources(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, Mapping) and all(
        isinstance(n, int | float) and not isinstance(n, bool) and n > 0 for n in value.values()
    )


@options_dataclass("runtime")
class Runtime:
    """Options of a session; ``runtime.*`` of the config.

    Parameters
    ----------
    engine : str
        ``"tensorpipe"``, by default: the launcher's ranks; ``"ray"``: workers are actors of a Ray
        cluster, which starts them and replaces those that are lost.
    address : str
        Ray cluster: ``"host:port"``; ``"local"``, one that starts and ends with the run;
        ``"auto"``, by default: that of ``RAY_ADDRESS`` or of this machine, else local.
    workers : int | tuple[int, int] | None
        Workers on Ray: at most so many, or the least and the most. The run starts with the first
        one. By default None: one for each free GPU of the cluster, or 2 without GPUs.
    resources : Mapping[str, float] | None
        What Ray reserves for each worker, by default None: ``{GPU: 1}``, or ``{CPU: 1}`` without
        GPUs.
    wait_for_workers : float | None
        Seconds in which there must be the least number of workers on Ray, at the start and again
        after a loss, by default 300; None: no limit.
    nproc : int | None
        Ranks to start on this machine if no launcher started ranks; 1: everything in this process.
        By default None: `session` starts none; ``python main.py`` starts one for each GPU, at
        least 2 (3 without GPUs).
    drivers : int | str
        Ranks on which a recipe's prognostic runs, by default 1: rank 0. Each forecasts some of the
        initial times and members, and its states go to the workers, the ranks that are left. If all
        ranks are drivers, each also runs the diagnostics of its own states. ``"auto"``: as many as
        the first steps suggest.
    carrier : str
        How tensors are sent: ``"cuda"`` (from device to device), ``"host"`` (through host memory)
        or ``"auto"``, by default: ``"cuda"`` if a trial at the start works, else ``"host"``.
    results : str
        Where results are returned: in ``"host"`` memory, by default, or on the driver's
        ``"device"``, for an application that computes there.
    threads : int
        CPU threads of each rank, by default 1. Launchers differ in it, and the last bits of some
        operations depend on it.
    seed : int
        Seed of all random draws, by default 0; see `distinf.seeds.task_seed`.
    batch : int
        Dates and members that a recipe's prognostic steps together, by default 1.
    start_timeout : float
        Seconds within which all ranks must have found each other, by default 120.
    call_timeout : float | None
        Seconds for one attempt of a diagnostic call; then its worker is lost. By default 3600;
        None: no limit while the worker's process lives.
    max_attempts : int
        Attempts of one task, by default 3; each worker that is lost during the task costs one.
    liveness_timeout : float
        Seconds without a sign of life after which a worker is lost, by default 60.
    on_error : str
        After an error of a model: ``"fail"``, by default, writes what is in flight and ends the
        run; ``"skip"`` leaves the task out and continues.
    nonfinite : str
        NaN or an infinite value in a result: ``"allow"``, ``"warn"``, by default, or ``"fail"``, an
        error of the model. A recipe's ``diagnostic.<name>.nonfinite`` has priority.
    driver_works : str
        When rank 0 runs diagnostics: ``"never"``; ``"fallback"``, by default, if no worker is left;
        ``"idle"``, also while the prognostic waits for a free worker.
    expect_ranks : int | None
        Required number of ranks, by default None: as many as the launcher started.
    interface : str | None
        Network interface between nodes, by default None: the one of the route to rank 0. Ranks on
        one node use loopback only.
    metrics_port : int | None
        Port on which rank 0 serves metrics of the run for Prometheus, on loopback only; 0: any free
        one, which the log names. By default None: none.

    Raises
    ------
    ConfigError
        If a value is wrong.
    """

    engine: Literal["tensorpipe", "ray"] = "tensorpipe"
    address: Annotated[str, Field(description="must be auto, local or a cluster's host:port")] = (
        "auto"
    )
    workers: Annotated[Any, *valid_when(_is_number_of_workers, _WORKERS)] = None
    resources: Annotated[Any, *valid_when(_are_resources, _RESOURCES)] = None
    wait_for_workers: _Seconds | None = 300.0
    nproc: Count | None = None
    drivers: Annotated[Any, *valid_when(_is_number_of_drivers, _DRIVERS)] = 1
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
    interface: (
        Annotated[str, Field(description="must be a network interface, such as ib0")] | None
    ) = None
    metrics_port: Annotated[int, Field(ge=0, le=65535, description=_PORT)] | None = None

    def __post_init__(self) -> None:
        ranks = [key for key in ("nproc", "expect_ranks", "interface") if getattr(self, key)]
        actors = [key for key in ("workers", "resources") if getattr(self, key)]
        wrong = ranks if self.engine == "ray" else actors
        if wrong:
            raise ConfigError(
                f"runtime.{wrong[0]}={getattr(self, wrong[0])} has no meaning with "
                f"runtime.engine={self.engine}; leave one of the two out"
            )
        if self.engine == "ray" and self.drivers != 1:
            raise ConfigError(
                f"runtime.drivers={self.drivers}: on Ray the prognostic runs in one process; leave "
                "runtime.drivers or runtime.engine=ray out"
            )

    @property
    def least_workers(self) -> int:
        """Workers below which a run on Ray waits, and then ends."""
        return int(self.workers[0]) if isinstance(self.workers, list | tuple) else 1

    @property
    def most_workers(self) -> int | None:
        """Workers that a run on Ray has at most; None: as many as there are free GPUs, or 2."""
        most = self.workers[1] if isinstance(self.workers, list | tuple) else self.workers
        return None if most is None else int(most)


@dataclasses.dataclass(frozen=True)
class GroupSizes:
    """How many ranks run a model together: the prognostic, and each of the diagnostics."""

    prognostic: int = 1
    diagnostic: int = 1

    @property
    def any(self) -> bool:
        """Whether a model runs on several ranks."""
        return self != GroupSizes()

    def check(self, world_size: int) -> None:
        """Raise `ConfigError` if so many ranks cannot be divided so."""
        if self.any and world_size < self.prognostic + self.diagnostic:
            key = "prognostic" if self.prognostic > 1 else "diagnostic.<name>"
            raise ConfigError(
                f"{key}.ranks: the prognostic needs {self.prognostic} rank(s) and the diagnostics "
                f"{self.diagnostic} more, but there are {world_size}: start more (runtime.nproc)"
            )
        if (workers := world_size - self.prognostic) % self.diagnostic:
            raise ConfigError(
                f"diagnostic.<name>.ranks={self.diagnostic}: does not divide the {workers} ranks "
                f"that are left beside the prognostic's {self.prognostic}: start "
                f"{self.prognostic + self.diagnostic * max(1, workers // self.diagnostic)} or "
                f"{self.prognostic + self.diagnostic * (workers // self.diagnostic + 1)}"
            )

    def groups(self, world_size: int) -> list[tuple[int, ...]]:
        """Ranks of the prognostic, and of each replica of the diagnostics."""
        first = range(self.prognostic, world_size, self.diagnostic)
        replicas = [tuple(range(rank, rank + self.diagnostic)) for rank in first]
        return [tuple(range(self.prognostic)), *replicas]


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


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in value
    )


def _are_levels(value: Any) -> bool:
    return _are_numbers(value) and all(0 <= v <= 1 for v in value) and len(set(value)) == len(value)


def _are_thresholds(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _are_numbers(own) and own and len(set(own)) == len(own) for own in value.values()
    )


@options_dataclass("output.statistics")
class Statistics:
    """Statistics over the members of an ensemble; ``output.statistics.*`` of the config.

    Parameters
    ----------
    mean, std, min, max : bool
        The mean, the standard deviation (with n - 1), the least and the largest value.
    quantiles : list[float]
        Quantiles between 0 and 1, interpolated linearly.
    exceedance : Mapping[str, list[float]]
        Of each variable thresholds, in its units; the share of the members above each.

    Raises
    ------
    ConfigError
        If a value is wrong.
    """

    mean: bool = False
    std: bool = False
    min: bool = False
    max: bool = False
    quantiles: Annotated[
        Sequence[float],
        *valid_when(_are_levels, "must be numbers between 0 and 1, such as [0.1,0.9], each once"),
    ] = ()
    exceedance: Annotated[
        Mapping[str, Sequence[float]],
        *valid_when(_are_thresholds, "must map variables to thresholds, such as {tp: [1,10]}"),
    ] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        plain = (self.mean, self.std, self.min, self.max, self.quantiles, self.exceedance)
        if not any(plain):
            raise ConfigError("output.statistics: choose at least one, or null")


def _read_statistics(given: Any) -> Any:
    if given is None or isinstance(given, Statistics):
        return given
    if isinstance(given, list | tuple):
        given = dict.fromkeys(given, True)
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"output.statistics={given}: must be a list such as [mean,std], or a mapping such as "
            "{mean: true, quantiles: [0.1,0.9]}"
        )
    return from_mapping(Statistics, given, "output.statistics")


@options_dataclass("output.verification")
class Verification:
    """Scores against a data source; ``output.verification.*`` of the config.

    Parameters
    ----------
    data : Mapping[str, Any]
        Section with ``_target_`` of the data source; it has the valid times, and all points of the
        fields.
    variables : list[str] | None
        Variables to score, by default None: all of the diagnostics and of
        ``output.prognostic_variables``.

    Raises
    ------
    ConfigError
        If a value is wrong.
    """

    data: Annotated[
        Mapping[str, Any],
        *valid_when(lambda x: isinstance(x, Mapping), "must be a section of data, with _target_"),
    ]
    variables: _Names | None = None


def _read_verification(given: Any) -> Any:
    if given is None or isinstance(given, Verification):
        return given
    where = "output.verification"
    if not isinstance(given, Mapping) or "data" not in given:
        raise ConfigError(
            f"{where}={given}: must be a mapping such as {{data: {{_target_: ...}}, "
            "variables: null}"
        )
    return from_mapping(Verification, given, where)


@options_dataclass("output")
class Output:
    """What is stored and how; ``output.*`` of the config.

    Parameters
    ----------
    mode : str
        ``"create"``, by default, refuses an existing store; ``"overwrite"`` replaces it;
        ``"resume"`` continues it, or creates it.
    writer : str
        ``"driver"``, by default, or ``"workers"``: each writes its own results, into a store that
        all ranks reach; not with ``shards``.
    writers : int
        Threads of the driver that write, by default 2.
    prognostic_variables : list[str]
        Variables of the prognostic to store, too, by default none.
    variables : list[str] | None
        Variables of the diagnostics to store, by default None: all.
    region : Mapping[str, list[float]] | None
        ``lat: [south, north]`` and ``lon: [west, east]`` in degrees, by default None: the whole
        grid.
    every : int
        Diagnose and store every n-th lead time, by default 1.
    shards : int | None
        Lead times in one file (a Zarr shard), by default None: one file for each.
    netcdf : str | None
        A NetCDF file to write at the end, too, by default None. ``mode`` applies to it:
        ``"overwrite"`` replaces a file that distinf made, ``"resume"`` a copy of the same store.
    check_space : bool
        Whether to refuse a run that may not fit on the disk, by default True.
    verify : bool
        Whether to read back a resumed store and compute damaged steps again, by default False.
    statistics : Statistics | None
        Statistics over the members of an ensemble, by default None. A list such as
        ``["mean", "std"]`` is enough for those without values.
    members : bool
        Whether the members stay in the store, by default True; False: only their statistics.
    verification : Verification | None
        Scores against a data source, by default None.
    restart_every : int | None
        Steps between two saved states of a prognostic that can restart, by default 10; None: none
        is saved. They lie in the store until its forecast is complete.

    Raises
    ------
    ConfigError
        If a value is wrong.
    """

    mode: Literal["create", "overwrite", "resume"] = "create"
    writer: Literal["driver", "workers"] = "driver"
    writers: Count = 2
    prognostic_variables: _Names = ()
    variables: _Names | None = None
    region: Annotated[
        Mapping[str, Sequence[float]] | None,
        PlainValidator(_check_region),
        Field(description="must be like {lat: [30, 60], lon: [-10, 40]}"),
    ] = None
    every: Count = 1
    shards: Count | None = None
    netcdf: Annotated[str | None, Field(description="name a file, such as forecast.nc")] = None
    check_space: bool = True
    verify: bool = False
    statistics: Annotated[
        Statistics | None,
        PlainValidator(_read_statistics),
        Field(description="must be a list or a mapping"),
    ] = None
    members: bool = True
    verification: Annotated[
        Verification | None,
        PlainValidator(_read_verification),
        Field(description="must be a mapping with data and variables"),
    ] = None
    restart_every: Count | None = 10

    def __post_init__(self) -> None:
        if self.writer == "workers" and self.shards is not None:
            raise ConfigError(
                f"output.writer=workers and output.shards={self.shards}: the lead times of one "
                "file are computed by several workers; leave one of the two out"
            )
        if not self.members and self.statistics is None:
            raise ConfigError("output.members=false: choose output.statistics, or nothing is kept")


@options_dataclass("report")
class Report:
    """The HTML page about a run; ``report.*`` of the config.

    Parameters
    ----------
    at_end : bool
        Whether a run writes ``report.html`` into its folder at its end, by default False.
    sweeps : bool
        Whether each run of a sweep does, too, by default False.
    variables : list[str] | None
        Variables to show, by default None: the first ones of each diagnostic.
    lead_times : str | list[str] | Mapping[str, str] | None
        Lead times of the maps, as ``parameters.lead_time``; by default None: up to four.
    time : str | None
        Initial time to show, by default None: the first one.
    megabytes : float
        Data that is read from the store, at most (but one field of each variable), by default 1000.
    events : str | None
        File of events for ``recipe=report``, by default None: that of the newest run of the store
        among the runs' folders.

    Raises
    ------
    ConfigError
        If a value is wrong.
    """

    at_end: bool = False
    sweeps: bool = False
    variables: _Names | None = None
    lead_times: Any = None
    time: Any = None
    megabytes: Annotated[
        float, Field(gt=0, description="must be a number of megabytes above 0")
    ] = 1000.0
    events: Annotated[
        str | None,
        Field(description="name a file events.jsonl of a run"),
    ] = None
