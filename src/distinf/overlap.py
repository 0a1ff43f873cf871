"""Whether what a run writes lies where something lies that it must not destroy.

Paths are compared as the file system knows them, whatever name they have; URLs by their parts.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distinf.errors import ConfigError

__all__ = ["caches", "check_overlap", "inputs", "lies_in"]

# Names that fsspec's file systems have beside their first one.
_SCHEMES = {
    **{"s3a": "s3", "s3n": "s3", "gcs": "gs", "https": "http"},
    **{"abfss": "abfs", "az": "abfs", "adl": "abfs"},
}
_LOCAL = ("file", "local")
# Keys whose values are names, whatever folder has the same one.
_NAMES = ("after", "kind", "model", "precision", "rename", "variable", "variables")


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


def inputs(section: Any, where: str) -> dict[str, str]:
    """Find the files, folders and URLs that a section of the config names.

    Parameters
    ----------
    section : Any
        The section: mappings, lists, values.
    where : str
        Its name.

    Returns
    -------
    dict[str, str]
        From the key to the path or URL.
    """
    found: dict[str, str] = {}
    if isinstance(section, Mapping):
        for key, value in section.items():
            named = key == "_args_" or not str(key).startswith("_")  # _target_ names code
            if named and key not in _NAMES:
                found.update(inputs(value, f"{where}.{key}"))
    elif isinstance(section, list | tuple):
        for i, value in enumerate(section):
            found.update(inputs(value, f"{where}[{i}]"))
    elif isinstance(section, str):
        text = section if "://" in section else os.path.expanduser(section)
        if "://" in text or os.path.exists(text):
            found[where] = text
    return found


def caches() -> dict[str, str]:
    """Return the folders in which Earth2Studio and Hugging Face keep what they fetch."""
    home = os.path.join(os.path.expanduser("~"), ".cache")
    own = os.environ.get("EARTH2STUDIO_CACHE", os.path.join(home, "earth2studio"))
    hugging = os.path.join(os.environ.get("XDG_CACHE_HOME", home), "huggingface")
    hugging = os.environ.get("HF_HOME", hugging)
    told = {
        "Earth2Studio's cache of models": os.environ.get("EARTH2STUDIO_MODEL_CACHE", own),
        "Earth2Studio's cache of data": os.environ.get("EARTH2STUDIO_DATA_CACHE", own),
        "Hugging Face's cache": os.environ.get("HF_HUB_CACHE", os.path.join(hugging, "hub")),
    }
    return {
        name: os.path.expanduser(os.path.expandvars(path)) for name, path in told.items() if path
    }


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
