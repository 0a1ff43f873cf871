"""What the values in a store come from: the config, the versions and the files that were read.

A store keeps this record from its creation on. A resumed run compares its own with it: what
decides the values must be the same, what may change the last bits is said in one line.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distinf.overlap import inputs, lies_in
from distinf.reach import cached_folders

__all__ = ["Provenance", "differences", "read_code", "read_files"]

# Settings that may change on resume, but for those in `_DECIDING`.
_FREE = (
    r"runtime\..*",
    r"output\..*",
    "slurm",
    "recipe",
    r"parameters\.output_path",
    r"diagnostic\.[^.]*\.(workers|nonfinite)",
    r"prognostic\.restartable",
)
_DECIDING = ("runtime.batch", "runtime.seed", "runtime.threads", "output.shards")
# The same as if it were not set.
_SAME_AS_NONE = {r"diagnostic\.[^.]*\.compile": False}

_SECTIONS = ("prognostic", "diagnostic", "data", "perturbation")
_KNOWN = ("distinf", "earth2studio")  # their versions are recorded anyway
_WHOLE = 2**20  # a file up to this size is read whole
_PIECE, _PIECES = 2**16, 16  # of a larger one these pieces are read
_MANY = 200  # a folder of more files, such as a Zarr store, is recorded as one
# Folders under other keys may be for a model's own scratch files.
_INPUT = r"\.(package|paths?(\[\d+\])?)$"


@dataclass(frozen=True)
class Provenance:
    """What the values of a run come from.

    Parameters
    ----------
    config : Mapping[str, Any], optional
        The resolved config.
    versions : Mapping[str, str], optional
        Versions of libraries.
    files : Mapping[str, Any], optional
        As :func:`read_files` returns them.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)

    def created(self) -> dict[str, str]:
        """Attributes of a store that this run creates."""
        return {
            "history": f"{_now()} created by distinf",
            "config": json.dumps(self.config, default=str),
            "versions": json.dumps(dict(self.versions)),
            "files": json.dumps(self.files),
        }

    def problems(self, written: Mapping[str, Any]) -> list[str]:
        """Why a run cannot continue a store.

        Parameters
        ----------
        written : Mapping[str, Any]
            Attributes of the store.

        Returns
        -------
        list[str]
            Each difference in one line; empty if the values would be the same.
        """
        config = written.get("config")
        if not isinstance(config, str):
            return ["it was not made by distinf"]
        now = json.loads(json.dumps(self.config, default=str))
        return [
            *(
                f"{key}: the store has {was}, this run {mine}"
                for key, was, mine in differences(json.loads(config), now)
            ),
            *(said for said, decides in self._files(written) if decides),
        ]

    def warnings(self, written: Mapping[str, Any]) -> list[str]:
        """List what has changed since a store was created and may change the values that follow."""
        was = json.loads(written.get("versions", "{}"))
        return [
            *(
                f"{name} is {mine}, it was {was[name]}"
                for name, mine in self.versions.items()
                if name in was and was[name] != mine
            ),
            *(said for said, decides in self._files(written) if not decides),
        ]

    def resumed(self, written: Mapping[str, Any]) -> dict[str, str]:
        """Attributes of a store that change when this run continues it; argument as above."""
        news: dict[str, str] = {}
        if changed := self.warnings(written):
            history = str(written.get("history", ""))
            said = f"resumed by distinf: {'; '.join(changed)}"
            if not history.endswith(said):
                news["history"] = f"{history}\n{_now()} {said}"
        if _nsteps(json.loads(written["config"])) != _nsteps(self.config):
            news["config"] = json.dumps(self.config, default=str)
        return news

    def _files(self, written: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
        """Files that have changed, and whether this decides the values."""
        was = json.loads(written.get("files", "{}"))
        for key in sorted(was.keys() & self.files.keys()):
            before, here = was[key], self.files[key]
            many = any("many" in record for record in (*before.values(), *here.values()))
            gone = sorted(before.keys() - here.keys())
            if gone and many:  # there were as few as to record each, or are now
                yield f"files in the folder of {key} have changed", False
            elif gone:
                yield f"{', '.join(gone)} ({key}) can no longer be found", False
            for name in sorted(before.keys() & here.keys()):
                then, now = before[name], here[name]
                what = f"the file {name} ({key})"
                if "many" in then or "many" in now:
                    if any(then.get(k) != now.get(k) for k in ("many", "sample")):
                        yield f"files in the folder {name} ({key}) have changed", False
                    elif then.get("newest", now.get("newest")) != now.get("newest"):
                        said = "were written again, with the same names and sizes"
                        yield f"files in the folder {name} ({key}) {said}", False
                elif then["size"] != now["size"]:
                    sizes = f"{then['size']} bytes then, {now['size']} now"
                    yield f"{what} is not the one that the store was made from: {sizes}", True
                elif then["sample"] != now["sample"]:
                    yield f"{what} is not the one that the store was made from", True
                elif then["mtime"] != now["mtime"]:
                    yield f"{what} was written again, with the same size and samples", False


def differences(
    was: Mapping[str, Any], now: Mapping[str, Any], where: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Keys of two configs that decide the values and differ.

    Parameters
    ----------
    was, now : Mapping[str, Any]
        Of the store, and of this run.
    where : str, optional
        Prefix of their keys, by default none.

    Yields
    ------
    tuple[str, Any, Any]
        The key and both values; None where there is none.
    """
    for key in sorted({*was, *now}):
        path = f"{where}{key}"
        if path not in _DECIDING and any(re.fullmatch(free, path) for free in _FREE):
            continue
        a, b = was.get(key), now.get(key)
        for same, value in _SAME_AS_NONE.items():
            if re.fullmatch(same, path):
                a, b = (None if v is value else v for v in (a, b))
        if path == "parameters.nsteps" and isinstance(a, int) and isinstance(b, int) and b > a:
            continue  # more steps change none of the first ones
        if isinstance(a or {}, dict) and isinstance(b or {}, dict) and (a or b):
            yield from differences(a or {}, b or {}, f"{path}.")
        elif json.dumps(a, default=str) != json.dumps(b, default=str):
            yield path, a, b


def read_files(config: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Record the input files and model packages that a config names.

    Parameters
    ----------
    config : Mapping[str, Any]
        The resolved config.

    Returns
    -------
    dict
        For each key of the config that names files which are here, or a package that lies in
        Earth2Studio's cache, its files: ``size`` in bytes, ``mtime`` in ns, ``sample``: a digest
        of a small file, or of pieces of a large one. A folder of more than 200 files, or under
        another key than ``path``, ``paths`` or ``package``, is one entry with ``many``: a digest
        of their names and sizes.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for section in _SECTIONS:
        for key, text in inputs(config.get(section), section).items():
            # A folder around the working folder holds more than an input.
            if "://" not in text and not lies_in(os.getcwd(), text):
                found[key] = _record(Path(text), re.search(_INPUT, key) is not None)
    for key, folders in cached_folders(config):
        records = [_record(folder, True) for folder in folders if folder.is_dir()]
        merged = {name: own for record in records for name, own in record.items()}
        if merged:
            found[key] = merged
    return found


def read_code(config: Mapping[str, Any]) -> dict[str, str]:
    """Record the code that a config names and that is neither distinf's nor Earth2Studio's.

    Parameters
    ----------
    config : Mapping[str, Any]
        The resolved config.

    Returns
    -------
    dict[str, str]
        For each such module or package its version if it is installed, else a digest of its
        Python files.
    """
    found: dict[str, str] = {}
    for section in _SECTIONS:
        for target in _targets(config.get(section)):
            top, spec = target.split(".")[0], None
            if top.isidentifier() and top not in (*_KNOWN, "__main__"):
                spec = importlib.util.find_spec(top)
            if spec is not None and spec.origin is not None:
                found[f"the code of {top}"] = _code(top, Path(spec.origin))
    return found


def _targets(section: Any) -> Iterator[str]:
    """Yield the dotted names of classes and functions in a section."""
    if isinstance(section, Mapping):
        for key, value in section.items():
            if key in ("_target_", "model", "kind") and isinstance(value, str) and "." in value:
                yield value
            else:
                yield from _targets(value)
    elif isinstance(section, list | tuple):
        for value in section:
            yield from _targets(value)


def _code(top: str, origin: Path) -> str:
    """Version of a module that is installed, else a digest of its files."""
    if "site-packages" in origin.parts:
        with suppress(PackageNotFoundError):
            return version(top)
    files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(origin.parent)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def _nsteps(config: Mapping[str, Any]) -> Any:
    return (config.get("parameters") or {}).get("nsteps")


def _record(path: Path, decides: bool) -> dict[str, dict[str, Any]]:
    """Record a file, or a folder: each file, if it decides the values, else all as one."""
    if path.is_file():
        return {path.name: _fingerprint(path)}
    names = sorted(
        str(own.relative_to(path))
        for own in path.rglob("*")
        if own.is_file() and own.name != "cache"  # fsspec's list of what it has cached
    )
    if decides and len(names) <= _MANY:
        return {name: _fingerprint(path / name) for name in names}
    digest, newest = hashlib.sha256(), 0
    for name in names:
        state = (path / name).stat()
        digest.update(f"{name} {state.st_size}\n".encode())
        newest = max(newest, state.st_mtime_ns)
    sample = digest.hexdigest()[:16]
    return {path.name: {"many": len(names), "sample": sample, "newest": newest}}


def _fingerprint(path: Path) -> dict[str, Any]:
    state = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if state.st_size <= _WHOLE:
            digest.update(file.read())
        else:
            for i in range(_PIECES):
                file.seek(i * (state.st_size - _PIECE) // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return {
        "size": state.st_size,
        "mtime": state.st_mtime_ns,
        "sample": digest.hexdigest()[:16],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
