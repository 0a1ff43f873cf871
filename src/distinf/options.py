"""From a plain mapping to typed options, with one clear error for a misspelt key.

Without torch, so that a wrong config is answered at once.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from distinf.errors import ConfigError

__all__ = ["Output", "check_keys", "check_target", "from_mapping", "parse_times"]

T = TypeVar("T")
_MODES = ("create", "overwrite", "resume")


@dataclass(frozen=True)
class Output:
    """What is stored and how; ``output.*`` of the config.

    Parameters
    ----------
    mode : str
        ``"create"`` refuses an existing store, ``"overwrite"`` replaces it, ``"resume"``
        continues it and creates one where there is none; by default ``"create"``.
    writers : int
        Threads that write, by default 2.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    mode: str = "create"
    writers: int = 2

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ConfigError(f"output.mode={self.mode}: choose one of {', '.join(_MODES)}")
        # YAML's `true` is an int to Python.
        if type(self.writers) is not int or self.writers < 1:
            raise ConfigError(f"output.writers={self.writers}: must be a whole number, at least 1")


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


def check_target(given: Mapping[str, Any], where: str) -> None:
    """Refuse settings of a ``_target_`` that it does not take.

    Only targets of this package and of Earth2Studio are looked at, and nothing is imported.

    Parameters
    ----------
    given : Mapping[str, Any]
        Settings with ``_target_``.
    where : str
        The section, for errors.

    Raises
    ------
    ConfigError
        If ``_target_`` is missing, or it or a key does not exist.
    """
    target = given.get("_target_")
    if not isinstance(target, str):
        raise ConfigError(
            f"{where} has no _target_: choose one of its group, or set {where}._target_"
        )
    if not target.startswith(("distinf.", "earth2studio.")):
        return
    if target.startswith("distinf.loading.load_"):
        from distinf.loading import check_loader

        check_loader(given, target.removeprefix("distinf.loading."), where)
        return
    from distinf.declared import find

    declared = find(target, f"{where}._target_")
    taken = declared.parameters() if declared is not None else None
    if taken is not None:
        check_keys([key for key in given if not key.startswith("_")], taken, where)


def parse_times(time: Any) -> np.ndarray:
    """Read initial times into an array.

    Parameters
    ----------
    time : str | datetime | list
        One time or a list of them, as ``parameters.time``.

    Returns
    -------
    np.ndarray
        datetime64[ns], [time].

    Raises
    ------
    ConfigError
        If one cannot be read, if one appears twice, or if there is none.
    """
    items = list(time) if isinstance(time, list | tuple) else [time]
    if not items:
        raise ConfigError("parameters.time=[]: name at least one initial time")
    parsed = []
    for item in items:
        value: np.datetime64
        try:
            value = np.datetime64(str(item).replace(" ", "T"), "ns")
        except ValueError:
            value = np.datetime64("NaT")
        if np.isnat(value):
            raise ConfigError(
                f"parameters.time={item}: not a time; write it like 2023-06-01T00:00:00 (UTC)"
            )
        parsed.append(value)
    if len(set(parsed)) < len(parsed):
        raise ConfigError(f"parameters.time={items}: a time appears twice")
    return np.array(parsed)
