"""Which paths and URLs contain others; a private folder of this user.

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

# Other schemes of fsspec's file systems, and the first one of each.
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
        return any(_is_same(self.path, outer) for outer in (other.path, *other.path.parents))


def _is_same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):  # one of them does not exist
        return one.samefile(other)
    return False


def _locations(text: str) -> Iterator[_Location]:
    """Yield where a path or URL points to; for ``simplecache::s3://...`` each of its parts."""
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
            yield from _locations(rest)  # relative, too: so does fsspec
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
    """Raise `ConfigError` if an output would destroy something else; it names both.

    ``outputs`` are the paths and URLs that are written, by their keys; they must not overlap each
    other. ``apart`` are paths, by name, that must not overlap an output. ``around`` are folders
    that may contain an output, but must not lie in one or be one.
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
    """Return this user's private folder; raise ``kind`` if it is not private."""
    folder = Path(tempfile.gettempdir()) / f"distinf-{os.getuid()}"
    with contextlib.suppress(FileExistsError):  # checked below
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not private or found.st_mode & 0o077:
        raise kind(
            f"{folder} must be a folder that belongs to user {os.getuid()} and that nobody else "
            "may enter (mode 700): remove it, or set TMPDIR to another place"
        )
    return folder
