"""From a mapping to typed options, with one clear error for a misspelt key or a wrong value.

Imports no torch, so that a wrong config ends in a second. Each class of options declares its
possible values. pydantic checks them, and its first error becomes one line: the key, its value and
what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

from pydantic import ConfigDict, Field, PlainValidator, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic.fields import FieldInfo

from distinf.errors import ConfigError

T = TypeVar("T")

# The description of a type completes the message "key=value: ...".
Count = Annotated[int, Field(ge=1, description="must be a whole number, at least 1")]


def valid_when(test: Callable[[Any], object], right: str) -> Any:
    """Declare a value by a test: ``Annotated[T, *valid_when(...)]``; ``right`` ends the message."""

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


_ORDERS = r"^(must be|choose|write it|name) "  # with which the end of a message begins


def option_values(kind: Any) -> dict[str, str]:
    """Return what each key of a class of options may be, such as ``"auto, cuda or host"``."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: re.sub(_ORDERS, "", _right(hints[name])) for name in option_names(kind)}


def _right(hint: Any) -> str:
    """Describe the possible values of a type hint."""
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


def check_keys(given: Iterable[str], valid: Iterable[str], where: str) -> None:
    """Check that all keys exist.

    Parameters
    ----------
    given, valid : Iterable[str]
        The keys of a section, and its valid keys.
    where : str
        The section, such as ``"runtime"``; empty for the top level.

    Raises
    ------
    ConfigError
        If a key does not exist; names it, the most similar valid key and all valid keys.
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
    """Make an object of an `options_dataclass` from a section; raise `ConfigError`."""
    check_keys(given, option_names(kind), where)
    made = object.__new__(kind)
    _construct(made, where, **given)
    return made


# Names in older configs and stores, and their present names.
_MOVED = {
    f"distinf.fields.{name}": f"distinf.models.{name}"
    for name in ("FileSource", "RandomFields", "persistence", "replay")
}


def current_targets(section: Any) -> tuple[Any, dict[str, str]]:
    """Replace old names of targets in a config; return it, and the new name of each old one."""
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
