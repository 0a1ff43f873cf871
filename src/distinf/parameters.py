"""The section ``parameters``: initial times, lead times and members.

Imports no torch, so that a wrong config ends in a second.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from numbers import Real
from typing import Any

import numpy as np

from distinf.errors import ConfigError
from distinf.typed_options import check_keys

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RANGE = "dates lie between 1677-09-22 and 2262-04-11 (datetime64[ns])"
_LIMIT = 2**63  # nanoseconds from the epoch
_MOST_TIMES = 10_000_000
_NANOSECONDS = {"min": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}
# Stricter than `datetime.fromisoformat`: a date must have its hyphens.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}(:[0-9]{2}(:[0-9]{2}(\.(?P<fraction>[0-9]{1,9}))?)?)?"
    r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?"
)


def parse_ensemble(ensemble: Any, perturbation: Any) -> int | None:
    """Read the size of the ensemble, None without one; members need a perturbation."""
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
    return ensemble


def parse_members(members: Any) -> np.ndarray | None:
    """Read the members of an archive that a run takes, int64; null: None, all of them.

    Raises `ConfigError` if they are no whole numbers or one appears twice.
    """
    if members is None:
        return None
    items = list(members) if isinstance(members, list | tuple) else [members]
    if not items or any(type(item) is not int or item < 0 for item in items):
        raise ConfigError(
            f"parameters.ensemble={members}: must be members of the data, such as [0, 1], or null "
            "for all"
        )
    if len(set(items)) < len(items):
        raise ConfigError(f"parameters.ensemble={items}: a member appears twice")
    return np.array(items, dtype=np.int64)


def parse_lead_times(lead_time: Any, where: str = "parameters.lead_time") -> np.ndarray:
    """Read lead times into an array, timedelta64[ns], [lead_time]; ``where`` is their key.

    ``lead_time`` is one, such as ``"6h"`` or 0, a list of them, or ``start``, ``end`` (included)
    and ``interval``. Raises `ConfigError` if one is no lead time or appears twice.
    """
    if isinstance(lead_time, Mapping):
        return _period(lead_time, where, _lead).astype("timedelta64[ns]")
    items = list(lead_time) if isinstance(lead_time, list | tuple) else [lead_time]
    found = [_lead(item, where) for item in items]
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"{where}={items}: name at least one, and each once")
    return np.array(found).astype("timedelta64[ns]")


def _lead(value: Any, where: str) -> np.timedelta64:
    if re.fullmatch(r"0+( ?(min|h|d))?", str(value)):
        return np.timedelta64(0, "ns")
    return parse_interval(value, where)


def parse_times(time: Any, where: str = "parameters.time") -> np.ndarray:
    """Read initial times into an array, datetime64[ns] (UTC), [time]; ``where`` is their key.

    ``time`` is one time, a list of them, or ``start``, ``end`` (included) and ``interval``, such
    as ``"6h"`` or ``"1d"``. A time is a date ``2023-06-01`` or a date and a time of day
    ``2023-06-01T06:00`` of ISO 8601; one with an offset from UTC is converted. Raises
    `ConfigError` if one is no time or out of range, if one appears twice, or if there is none.
    """
    if isinstance(time, Mapping):
        return _period(time, where, _time).astype("datetime64[ns]")
    items = list(time) if isinstance(time, list | tuple) else [time]
    if not items:
        raise ConfigError(f"{where}=[]: name at least one initial time")
    parsed = [_time(item, where) for item in items]
    if len(set(parsed)) < len(parsed):
        raise ConfigError(f"{where}={items}: a time appears twice")
    return np.array(parsed).astype("datetime64[ns]")


def parse_interval(interval: Any, where: str) -> np.timedelta64:
    """Read a duration, ``"30min"``, ``"6h"`` or ``"1d"``; ``where`` is its key, for errors."""
    interval = " ".join(str(interval).split())
    match = re.fullmatch(r"([0-9]+) ?(min|h|d)", interval)
    if match is None or int(match[1]) < 1:
        raise ConfigError(f"{where}={interval}: write it like 30min, 6h or 1d")
    length = int(match[1]) * _NANOSECONDS[match[2]]
    if length >= _LIMIT:
        raise ConfigError(f"{where}={interval}: too long; write it like 30min, 6h or 1d")
    return np.timedelta64(length, "ns")


def check_valid_times(times: np.ndarray, step: np.timedelta64, nsteps: int) -> None:
    """Refuse ``nsteps`` steps of length ``step`` that end after the last datetime64[ns]."""
    length = int(step.astype("timedelta64[ns]").astype(np.int64))
    last = int(times.max().astype(np.int64))
    if length > 0 and last + nsteps * length >= _LIMIT:
        start = np.datetime_as_string(times.max(), "m")
        raise ConfigError(
            f"parameters.nsteps={nsteps}: the forecast from {start} would end after "
            f"2262-04-11, where datetime64[ns] ends; at most "
            f"{(_LIMIT - 1 - last) // length} steps are possible"
        )


def _period(given: Mapping[str, Any], where: str, read: Callable[[Any, str], Any]) -> np.ndarray:
    """Read start, end (included) and interval into nanoseconds, int64."""
    names = ("start", "end", "interval")
    check_keys(given, names, where)
    for name in names:
        if name not in given:
            raise ConfigError(f"{where}.{name} is missing: give start, end (included) and interval")
    start, end = (read(given[name], f"{where}.{name}") for name in names[:2])
    step = parse_interval(given["interval"], f"{where}.interval")
    if end < start:
        raise ConfigError(f"{where}.end={given['end']} lies before its start {given['start']}")
    # Python's integers do not overflow.
    first, last, length = (int(value.astype(np.int64)) for value in (start, end, step))
    count = (last - first) // length + 1
    if count > _MOST_TIMES:
        raise ConfigError(
            f"{where}.interval={given['interval']}: from {given['start']} to "
            f"{given['end']} these are {count} times; at most {_MOST_TIMES} are possible"
        )
    return first + np.arange(count) * length


def _time(item: Any, where: str) -> np.datetime64:
    text = str(item)
    shown = " ".join(text.split())
    number = isinstance(item, Real)
    match = None if number else _TIME.fullmatch(text)
    read = None
    if match is not None:
        with contextlib.suppress(ValueError):  # there is no such date
            read = datetime.fromisoformat(text).replace(microsecond=0)
    if match is None or read is None:
        meant = _meant(text)
        write = f"write {meant}" if meant else "write it like 2023-06-01T00:00:00"
        raise ConfigError(f"{where}={shown}: not a time{' but a number' * number}; {write} (UTC)")
    read = read if read.tzinfo else read.replace(tzinfo=UTC)
    fraction = (match["fraction"] or "").ljust(9, "0")
    nanoseconds = int((read - _EPOCH).total_seconds()) * 10**9 + int(fraction)
    if not -_LIMIT < nanoseconds < _LIMIT:
        raise ConfigError(f"{where}={shown}: out of range; {_RANGE}")
    return np.datetime64(nanoseconds, "ns")


def _meant(text: str) -> str | None:
    """Return how to write the time that digits alone, or a year and a month, probably mean."""
    match = re.fullmatch(
        r"([0-9]{4})-?([0-9]{2})?([0-9]{2})?([0-9]{2})?([0-9]{2})?([0-9]{2})?", text
    )
    if match is None:
        return None
    year, month, day, *clock = match.groups()
    date = f"{year}-{month or '01'}-{day or '01'}"
    hour = ":".join(part for part in [*clock, *(["00"] * (clock[1] is None))] if part)
    meant = f"{date}T{hour}" if clock[0] else date
    with contextlib.suppress(ValueError):
        datetime.fromisoformat(meant)
        return meant
    return None
