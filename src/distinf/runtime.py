"""Options of a session; without torch, so that a wrong one is answered at once."""

from __future__ import annotations

from dataclasses import dataclass

from distinf.errors import ConfigError

__all__ = ["Runtime"]

_CHOICES = {
    "carrier": ("auto", "cuda", "host"),
    "results": ("host", "device"),
    "on_error": ("fail", "skip"),
    "nonfinite": ("allow", "warn", "fail"),
    "driver_works": ("never", "fallback", "idle"),
}


@dataclass(frozen=True)
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

    nproc: int | None = None
    carrier: str = "auto"
    results: str = "host"
    threads: int = 1
    seed: int = 0
    batch: int = 1
    start_timeout: float = 120.0
    call_timeout: float | None = 3600.0
    max_attempts: int = 3
    liveness_timeout: float = 60.0
    on_error: str = "fail"
    nonfinite: str = "warn"
    driver_works: str = "fallback"
    expect_ranks: int | None = None
    interface: str | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"runtime.{name}={getattr(self, name)}: choose {', '.join(choices[:-1])} or "
                    f"{choices[-1]}"
                )
        for name, least in (
            ("nproc", 1),
            ("threads", 1),
            ("seed", 0),
            ("batch", 1),
            ("max_attempts", 1),
            ("expect_ranks", 1),
        ):
            value = getattr(self, name)
            if value is None and name in ("nproc", "expect_ranks"):
                continue
            if type(value) is not int or value < least:
                raise ConfigError(
                    f"runtime.{name}={value}: must be a whole number, at least {least}"
                )
        for name in ("start_timeout", "call_timeout", "liveness_timeout"):
            value = getattr(self, name)
            if value is None and name == "call_timeout":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise ConfigError(f"runtime.{name}={value}: must be a number of seconds above 0")
