"""What lies at a destination: distinf's own files beside Zarr's, and what may be replaced."""

from __future__ import annotations

import contextlib
import enum
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from zarr.abc.store import Store

from distinf.errors import StoreError
from distinf.store.hold import LOCK, OWN

# Exists while a store is being created; after a kill in between, the next run begins again.
CREATING = LOCK + ".creating"
# Lists the store's arrays: distinf did not write anything else that is there.
CONTENTS = OWN + "contents"
# A folder: states of the prognostic, until the forecast is complete.
RESTART = OWN + "restart"
# A folder: members of an ensemble of which only statistics stay, until these are complete.
MEMBERS = OWN + "members"
# Holds a token by which workers that write verify that they see the driver's store.
TOKEN = OWN + "meeting"

_SHOWN = 3
# What a killed write leaves: see `distinf.store.destination`; that of Zarr has no ``.json``.
_PARTIAL = r"\.[0-9a-f]{32}\.partial"
_METADATA = rf"zarr\.json({_PARTIAL})?|zarr{_PARTIAL}"
_GROUP = re.compile(_METADATA)
_IN_ARRAY = re.compile(rf"c|{_METADATA}")


class Content(enum.Enum):
    """What lies at a destination."""

    NOTHING = enum.auto()
    FOREIGN = enum.auto()  # something that distinf did not make
    UNFINISHED = enum.auto()  # a store that is being created, or an empty folder
    STORE = enum.auto()  # a store whose metadata is whole


class Destination(ABC):
    """Where a store lies: a folder, or an object store that fsspec knows."""

    name: str  # its path or URL

    @abstractmethod
    def check_writable(self) -> None:
        """Raise `StoreError` if nothing can be written there."""

    @abstractmethod
    def hold(self) -> None:
        """Keep other runs away; raise `StoreError` if one holds it already."""

    @abstractmethod
    def check_held(self) -> None:
        """Raise `StoreError` if the store is no longer there, or another run may hold it."""

    @abstractmethod
    def release(self) -> None:
        """Let other runs in; idempotent."""

    @abstractmethod
    def open(self) -> Store:
        """Return it as a Zarr store, whose writes are durable when they return."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Bytes that fit if all that lies there is replaced; None if that is not known."""

    @abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """Names of the files in one of its folders; none if there is no such folder."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a file of this name, such as ``t2m/c/0/0/0/0``."""

    @abstractmethod
    def get(self, name: str) -> bytes:
        """Read a file of the store."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all; it is durable when this returns."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""

    @abstractmethod
    def content(self) -> Content:
        """Find out what lies there."""

    @abstractmethod
    def _end_creation(self) -> None:
        """Remove `CREATING`, durably."""

    def begin(self) -> None:
        """Remove what lies there, except the hold, and note that a store is being created.

        Raises `StoreError` as `check_replaceable`, or if something cannot be removed.
        """
        self.check_replaceable()
        self.put(CREATING, b"")
        # The group's metadata last: distinf recognizes its own stores by it.
        for name in sorted(self.names(), key=lambda name: (name == "zarr.json", name)):
            if not name.startswith(LOCK):
                self.remove(name)
        left = [name for name in self.names() if not name.startswith(LOCK)]
        if left:  # removing many objects reports no errors
            raise StoreError(f"{self.name}/{left[0]} could not be removed: may you delete there?")

    def commit(self) -> None:
        """Note that the store's metadata is whole."""
        arrays = [name for name in self.names() if not _is_own(name)]
        self.put(CONTENTS, json.dumps(arrays).encode())
        self._end_creation()

    def check_replaceable(self) -> None:
        """Refuse to replace what distinf did not write, which the `StoreError` names."""
        names = self.names()
        if names and not any(name.startswith(OWN) for name in names):  # its attributes were copied
            raise StoreError(
                f"parameters.output_path={self.name} has the attributes of a store of distinf, but "
                "was written by another program: choose another path, or remove it"
            )
        arrays = self._arrays(names)
        others = []
        for name in names:
            if _is_own(name):
                continue
            inside = self.names(name)
            if (arrays is not None and name not in arrays) or (not inside and self.has(name)):
                others.append(name)
            else:
                others += [f"{name}/{x}" for x in inside if not _IN_ARRAY.fullmatch(x)]
        if others:
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            raise StoreError(
                f"parameters.output_path={self.name} holds {', '.join(sorted(others)[:_SHOWN])}"
                f"{more}, which distinf did not write and replacing the store would delete: move "
                "that away, or choose another path"
            )

    def _content(self, names: list[str]) -> Content:
        """Find out what these names of files at the top are."""
        if CREATING in names or all(name.startswith(LOCK) for name in names):
            return Content.UNFINISHED
        attributes = self._group(names).get("attributes", {})
        made = isinstance(attributes.get("config"), str) and "created by distinf" in str(
            attributes.get("history")
        )
        return Content.STORE if made else Content.FOREIGN

    def _arrays(self, names: list[str]) -> set[str] | None:
        """Names of the arrays that distinf made; None while they are being created."""
        if CREATING in names:
            return None
        if CONTENTS in names:
            return set(json.loads(self.get(CONTENTS)))
        # An older store: by the attributes that distinf gives.
        group = self._group(names)
        listed = (group.get("consolidated_metadata") or {}).get("metadata", {})
        made = [k for k, v in listed.items() if _is_result(k, v.get("attributes", {}))]
        dimensions = [dim for name in made for dim in listed[name].get("dimension_names") or ()]
        coordinates = str(group.get("attributes", {}).get("coordinates", "")).split()
        return {*made, *dimensions, *coordinates}

    def _group(self, names: list[str]) -> dict[str, Any]:
        """Return the metadata of a Zarr group; empty if there is none."""
        if "zarr.json" in names:
            with contextlib.suppress(ValueError):  # not of Zarr, in spite of its name
                found = json.loads(self.get("zarr.json"))
                if isinstance(found, dict) and found.get("node_type") == "group":
                    return found
        return {}


def _is_own(name: str) -> bool:
    """Whether distinf writes this beside a store's arrays."""
    return name.startswith(OWN) or _GROUP.fullmatch(name) is not None


def _is_result(name: str, attributes: Mapping[str, Any]) -> bool:
    of = name.removesuffix("_complete")
    mark = attributes.get("long_name") == f"whether this step of {of} is complete"
    return "diagnostic" in attributes or (mark and of != name)
