"""Whether what a run writes lies where something lies that it must not destroy.

Paths are compared as the file system knows them, whatever name they have; URLs by their parts.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from distinf.errors import ConfigError, DistinfError

__all__ = ["check_overlap", "lies_in", "private_folder"]

# Names that fsspec's file systems have beside their first one.
_SCHEMES = {
    **{"s3a": "s3", "s3n": "s3", "gcs": "gs", "https": "http"},
    **{"abfss": "abfs", "az": "abfs", "adl": "abfs"},
}
_LOCAL = ("file", "local")


@dataclass(frozen=True)
class _Place:
    """Where something lies."""

    root: str
    parts: tuple[str, ...]
    path: Path | None = None

    def contains(self, other: _Place) -> bool:
        """Whether the other place lies in this one, or is it."""
        if self.root == other.root and self.parts == other.parts[: len(self.parts)]:
            return True
        if self.path is None or other.path is None:
            return False
        # The same folder by another mount, or by a name in other letters.
        own = _identity(self.path)
        return own is not None and own in map(_identity, (other.path, *other.path.parents))


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from all others of this machine; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _places(text: str) -> Iterator[_Place]:
    """Where a path or URL points to; ``simplecache::s3://...`` to each of its parts."""
    if "://" not in text:
        path = Path(os.path.realpath(text))
        yield _Place("file", path.parts, path)
        return
    for link in text.split("::"):
        scheme, _, rest = link.partition("://")
        if not rest:
            continue
        scheme = _SCHEMES.get(scheme.lower(), scheme.lower())
        if scheme in _LOCAL:
            yield from _places(rest)  # as fsspec: file://a is a folder below the working one
            continue
        url = urlsplit(link)
        whole = posixpath.normpath(f"/{url.path}")
        yield _Place(
            f"{scheme}://{url.netloc.lower()}", tuple(part for part in whole.split("/") if part)
        )


def lies_in(inner: str, outer: str) -> bool:
    """Whether a path or URL is another one or lies in it.

    Parameters
    ----------
    inner, outer : str
        Paths or URLs; they need not exist.
    """
    return any(b.contains(a) for a in _places(inner) for b in _places(outer))


def check_overlap(
    outputs: Mapping[str, str], apart: Mapping[str, str], around: Mapping[str, str]
) -> None:
    """Refuse an output that would destroy something else.

    Parameters
    ----------
    outputs : Mapping[str, str]
        From the key to the path or URL that is written; they must not overlap each other either.
    apart : Mapping[str, str]
        What must neither contain an output nor lie in one, by its name.
    around : Mapping[str, str]
        Folders that may contain an output, but must not lie in one or be one, by their names.

    Raises
    ------
    ConfigError
        Names the key, its path and what lies there.
    """
    listed = list(outputs.items())
    for i, (key, path) in enumerate(listed):
        for name, other in {**around, **apart, **dict(listed[:i])}.items():
            if lies_in(other, path):
                how = "is" if lies_in(path, other) else "contains"
            elif name not in around and lies_in(path, other):
                how = "lies in"
            else:
                continue
            told = name if other == path else f"{name} ({other})"
            raise ConfigError(f"{key}={path} {how} {told}: choose another path")


def private_folder(kind: type[DistinfError]) -> Path:
    """Return the folder of this user, which nobody else can read or replace.

    Raises
    ------
    DistinfError
        Of this kind, if it is somebody else's, or others may enter it.
    """
    folder = Path(tempfile.gettempdir()) / f"distinf-{os.getuid()}"
    with contextlib.suppress(FileExistsError):  # whatever it is
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not private or found.st_mode & 0o077:
        raise kind(
            f"{folder} must be a folder that belongs to user {os.getuid()} and that nobody else "
            "may enter (mode 700): remove it, or set TMPDIR to another place"
        )
    return folder
