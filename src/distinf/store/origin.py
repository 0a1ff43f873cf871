"""What of a place distinf has made: only that is ever replaced."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from distinf.errors import StoreError
from distinf.store.holder import CONTENTS, CREATING, LOCK, OWN

if TYPE_CHECKING:
    from distinf.store.destination import Destination

__all__ = ["check_replaceable", "contents", "is_made_by_distinf"]

_SHOWN = 3
# What a killed write leaves: see `distinf.store.durable.put`; Zarr's own has no ``.json``.
_PARTIAL = r"\.[0-9a-f]{32}\.partial"
_METADATA = rf"zarr\.json({_PARTIAL})?|zarr{_PARTIAL}"
_GROUP = re.compile(_METADATA)
_IN_ARRAY = re.compile(rf"c|{_METADATA}")


def is_made_by_distinf(place: Destination) -> bool:
    """Whether a place holds a forecast store, the beginning of one, or nothing."""
    names = place.names("")
    if CREATING in names or all(name.startswith(LOCK) for name in names):
        return True
    attributes = _group(place, names).get("attributes", {})
    return isinstance(attributes.get("config"), str) and "created by distinf" in str(
        attributes.get("history")
    )


def check_replaceable(place: Destination, words: str) -> None:
    """Refuse to replace a store that others wrote, or to which somebody has added something.

    Raises
    ------
    StoreError
        Names what is not of distinf.
    """
    names = place.names("")
    if names and not any(name.startswith(OWN) for name in names):  # its attributes were copied
        raise StoreError(
            f"parameters.output_path={words} has the attributes of a store of distinf, but was "
            "written by another program: choose another path, or remove it"
        )
    arrays = _arrays(place, names)
    others = []
    for name in names:
        if _is_own(name):
            continue
        inside = place.names(name)
        if (arrays is not None and name not in arrays) or (not inside and place.has(name)):
            others.append(name)
        else:
            others += [f"{name}/{x}" for x in inside if not _IN_ARRAY.fullmatch(x)]
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise StoreError(
            f"parameters.output_path={words} holds {', '.join(sorted(others)[:_SHOWN])}{more}, "
            "which distinf did not write and replacing the store would delete: move that away, or "
            "choose another path"
        )


def contents(names: Iterable[str]) -> bytes:
    """Write down the names of a store's arrays, of all names in it."""
    return json.dumps([name for name in names if not _is_own(name)]).encode()


def _is_own(name: str) -> bool:
    """Whether distinf writes this beside a store's arrays."""
    return name.startswith(OWN) or _GROUP.fullmatch(name) is not None


def _arrays(place: Destination, names: list[str]) -> set[str] | None:
    """Names of the arrays that distinf has made; None if any may be, for it is being created."""
    if CREATING in names:
        return None
    if CONTENTS in names:
        return set(json.loads(place.get(CONTENTS)))
    # An older store: by the attributes that distinf gives.
    group = _group(place, names)
    listed = group.get("consolidated_metadata") or {}
    made = {
        k: v
        for k, v in listed.get("metadata", {}).items()
        if _is_result(k, v.get("attributes", {}))
    }
    dimensions = {name for array in made.values() for name in array.get("dimension_names") or ()}
    coordinates = str(group.get("attributes", {}).get("coordinates", "")).split()
    return {*made, *dimensions, *coordinates}


def _is_result(name: str, attributes: Mapping[str, Any]) -> bool:
    of = name.removesuffix("_complete")
    mark = attributes.get("long_name") == f"whether this step of {of} is complete"
    return "diagnostic" in attributes or (mark and of != name)


def _group(place: Destination, names: list[str]) -> dict[str, Any]:
    """Return the metadata of a Zarr group; empty if there is none."""
    try:
        group = json.loads(place.get("zarr.json")) if "zarr.json" in names else {}
    except ValueError:  # not of Zarr, though it is called so
        group = {}
    of_zarr = isinstance(group, dict) and group.get("node_type") == "group"
    return group if of_zarr else {}
