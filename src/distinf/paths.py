"""Which paths and URLs contain others, and a folder that only this user can enter.

Paths are compared by the files that they name, URLs by their parts.
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

# Names that fsspec's file systems have beside their first one.
_SCHEMES = {
    **{"s3a": "s3", "s3n": "s3", "gcs": "gs", "https": "http"},
    **{"abfss": "abfs", "az": "abfs", "adl": "abfs"},
}
_LOCAL = ("file", "local")


@dataclass(frozen=True)
class _Location:
    """Where something lies."""

    root: str
    parts: tuple[str, ...]
    path: Path | None = None

    def contains(self, other: _Location) -> bool:
        """Whether the other location is this one or lies in it."""
        if self.root == other.root and self.parts == other.parts[: len(self.parts)]:
            return True
        if self.path is None or other.path is None:
            return False
        # The same folder by another mount, or by a name in other letters.
        own = _identity(self.path)
        return own is not None and own in map(_identity, (other.path, *other.path.parents))


def _identity(path: Path) -> tuple[int, int] | None:
    """Identify a file among all others of this machine; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _locations(text: str) -> Iterator[_Location]:
    """Where a path or URL points to; ``simplecache::s3://...`` to each of its parts."""
    if "://" not in text:
        path = Path(os.path.realpath(text))
        yield _Location("file", path.parts, path)
        return
    for link in text.split("::"):
        scheme, _, rest = link.partition("://")
        if not rest:
            continue
        scheme = _SCHEMES.get(scheme.lower(), scheme.lower())
        if scheme in _LOCAL:
            yield from _locations(rest)  # as fsspec: file://a is a folder below the working one
            continue
        url = urlsplit(link)
        whole = posixpath.normpath(f"/{url.path}")
        yield _Location(
            f"{scheme}://{url.netloc.lower()}", tuple(part for part in whole.split("/") if part)
        )


def lies_in(inner: str, outer: str) -> bool:
    """Whether a path or URL is another one or lies in it; they need not exist."""
    return any(b.contains(a) for a in _locations(inner) for b in _locations(outer))


def check_overlap(
    outputs: Mapping[str, str], apart: Mapping[str, str], around: Mapping[str, str]
) -> None:
    """Refuse an output that would destroy something else.

    ``outputs`` maps each config key to the path or URL that is written there; they must not overlap
    each other. ``apart`` are paths by name that must neither contain an output nor lie in one;
    ``around`` are folders that may contain an output, but must not lie in one or be one. The
    `ConfigError` names the key, its path and what lies there.
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
            named = name if other == path else f"{name} ({other})"
            raise ConfigError(f"{key}={path} {how} {named}: choose another path")


def private_folder(kind: type[DistinfError]) -> Path:
    """Return this user's private folder.

    Raises an error of this kind if it belongs to another user, or others may enter it.
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
