"""What the section ``parameters`` says: initial times and members.

Without torch, so that a wrong config is answered at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from distinf.errors import ConfigError
from distinf.options import check_keys

__all__ = ["parse_ensemble", "parse_times"]


def parse_ensemble(ensemble: Any, perturbation: Any) -> int | None:
    """Read the size of the ensemble.

    Parameters
    ----------
    ensemble : int | None
        ``parameters.ensemble``.
    perturbation : Mapping | None
        The section ``perturbation``.

    Returns
    -------
    int | None
        None without an ensemble.

    Raises
    ------
    ConfigError
        If it is no number, or nothing would tell the members apart.
    """
    if ensemble is None:
        return None
    if type(ensemble) is not int or ensemble < 1:
        raise ConfigError(
            f"parameters.ensemble={ensemble}: must be a number of members, at least 1, or null"
        )
    if not perturbation:
        raise ConfigError(
            f"parameters.ensemble={ensemble}: all members would be the same; choose a "
            "perturbation, such as perturbation=gaussian (perturbation=zero for a prognostic that "
            "draws itself)"
        )
    return int(ensemble)


def parse_times(time: Any) -> np.ndarray:
    """Read initial times into an array.

    Parameters
    ----------
    time : str | datetime | list | Mapping
        ``parameters.time``: one time, a list of them, or ``start``, ``end`` (included) and
        ``interval``, such as ``"6h"`` or ``"1d"``.

    Returns
    -------
    np.ndarray
        datetime64[ns], [time].

    Raises
    ------
    ConfigError
        If one cannot be read, if one appears twice, or if there is none.
    """
    if isinstance(time, Mapping):
        return _period(time)
    items = list(time) if isinstance(time, list | tuple) else [time]
    if not items:
        raise ConfigError("parameters.time=[]: name at least one initial time")
    parsed = [_time(item, "parameters.time") for item in items]
    if len(set(parsed)) < len(parsed):
        raise ConfigError(f"parameters.time={items}: a time appears twice")
    return np.array(parsed)


def _period(given: Mapping[str, Any]) -> np.ndarray:
    names = ("start", "end", "interval")
    check_keys(given, names, "parameters.time")
    for name in names:
        if name not in given:
            raise ConfigError(
                f"parameters.time.{name} is missing: give start, end (included) and interval"
            )
    start, end = (_time(given[name], f"parameters.time.{name}") for name in names[:2])
    match = re.fullmatch(r"(\d+)\s*(min|h|d)", str(given["interval"]).strip())
    if match is None or int(match[1]) < 1:
        raise ConfigError(
            f"parameters.time.interval={given['interval']}: write it like 30min, 6h or 1d"
        )
    if end < start:
        raise ConfigError(
            f"parameters.time.end={given['end']} lies before its start {given['start']}"
        )
    unit = {"min": "m", "h": "h", "d": "D"}[match[2]]
    step = np.timedelta64(int(match[1]), unit)  # type: ignore[call-overload]
    return np.arange(start, end + np.timedelta64(1, "ns"), step.astype("timedelta64[ns]"))


def _time(item: Any, where: str) -> np.datetime64:
    value: np.datetime64
    try:
        value = np.datetime64(str(item).replace(" ", "T"), "ns")
    except ValueError:
        value = np.datetime64("NaT")
    if np.isnat(value):
        raise ConfigError(f"{where}={item}: not a time; write it like 2023-06-01T00:00:00 (UTC)")
    return value
