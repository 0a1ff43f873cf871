"""A model's package for all ranks of one node: each file is fetched and unpacked once.

Some models unpack a zip file into its own folder whenever they are loaded. That fails if several
ranks do it at the same time, or if the folder is read-only. Here a zip file is unpacked once into
Earth2Studio's cache, and the model gets the path of an empty zip file there.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import Any

import filelock
from earth2studio.models.auto import Package

from distinf.errors import ConfigError
from distinf.paths import private_folder


class NodePackage(Package):  # type: ignore[misc]
    """Any package of Earth2Studio, safe for several processes of a node."""

    def __init__(self, package: Package) -> None:
        # The constructor of `Package` would choose the file system and the cache again.
        self.__dict__.update(package.__dict__)

    def open(self, file_path: str) -> BufferedReader:
        """Open a file; fetch it if no rank of this node has fetched it."""
        with _lock(f"{self.root} {self.cache}"):
            load_cache = getattr(self.fs, "load_cache", None)
            if load_cache is not None:  # another rank may have fetched files since
                load_cache()
            opened: BufferedReader = super().open(file_path)
            return opened

    def resolve(self, file_path: str) -> str:
        """Path of a file on this node; for a zip file, of an empty one beside its contents."""
        path: str = super().resolve(file_path)
        return _unpacked(Path(path)) if file_path.endswith(".zip") else path


def _unpacked(archive: Path) -> str:
    state = archive.stat()
    key = _short(f"{archive.resolve()} {state.st_size} {state.st_mtime_ns}")
    home = Path(Package.default_cache("unpacked")) / key
    with _lock(str(home)):
        if not home.exists():
            _unpack(archive, home)
    return str(home / archive.name)


def _unpack(archive: Path, home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{home.name}.", dir=home.parent))
    try:
        try:
            with zipfile.ZipFile(archive) as contents:
                contents.extractall(part)
        except zipfile.BadZipFile as error:
            raise ConfigError(f"{archive} is damaged: {error}; fetch it again") from error
        with zipfile.ZipFile(part / archive.name, "w"):
            pass
        # Another node that shares the cache may have been faster.
        with contextlib.suppress(OSError):
            part.rename(home)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if not home.exists():
        raise ConfigError(f"{archive} could not be unpacked into {home}")


def _lock(what: str) -> Any:
    return filelock.FileLock(private_folder(ConfigError) / f"{_short(what)}.lock")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
