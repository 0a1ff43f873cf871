"""What a run reads: the files, packages and caches that its config names, and their records."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distinf.loading.preflight import cache_home, cached_folders
from distinf.paths import check_overlap, lies_in

# Keys whose values are names, even if a folder has the same name.
_NAMES = ("after", "kind", "model", "precision", "rename", "variable", "variables")
_SECTIONS = ("prognostic", "diagnostic", "data", "perturbation")
_KNOWN = ("distinf", "earth2studio")  # their versions are always recorded
# Models of distinf whose numerical scheme changed, and its present name. A store of one scheme is
# not continued with another.
_SCHEMES = {"distinf.models.ShallowWater": "ETDRK4-B"}
_WHOLE = 2**20  # a file up to this size is read whole
_PIECE, _PIECES = 2**16, 16  # of a larger one, this many pieces of this size are read
_MANY = 200  # a folder with more files, such as a Zarr store, is one record
# Keys of inputs; folders under other keys may hold a model's temporary files.
_INPUT = r"\.(package|paths?(\[\d+\])?)$"


def inputs(section: Any, where: str) -> dict[str, str]:
    """Find the files, folders and URLs in the section ``where`` of a config, by their keys."""
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
    home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
    hugging = os.environ.get("HF_HOME", os.path.join(home, "huggingface"))
    named = {
        "Earth2Studio's cache of models": cache_home("MODEL"),
        "Earth2Studio's cache of data": cache_home("DATA"),
        "Hugging Face's cache": os.environ.get("HF_HUB_CACHE", os.path.join(hugging, "hub")),
    }
    return {
        name: os.path.expanduser(os.path.expandvars(path)) for name, path in named.items() if path
    }


def check_outputs(
    outputs: Mapping[str, str], config: Mapping[str, Any], folders: Mapping[str, str]
) -> None:
    """Raise `ConfigError` if an output overlaps what the run reads, or contains a folder of it.

    ``outputs`` are paths and URLs by their key, ``config`` names what is read, and ``folders`` hold
    the run: an output may lie in them, but not contain them.
    """
    read: dict[str, str] = {}
    around = {"the working folder": os.getcwd(), **folders}
    named = caches()
    for section, own in _sections(config).items():
        named.update(inputs(own, section))
    for name, path in named.items():
        # A folder that contains the working folder is more than an input or a cache.
        (around if lies_in(os.getcwd(), path) else read)[name] = path
    check_overlap(outputs, read, around)


def _sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of a config that name what is read."""
    verification = (config.get("output") or {}).get("verification") or {}
    named = {section: config.get(section) for section in _SECTIONS}
    return {**named, "output.verification.data": verification.get("data")}


def read_files(config: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Record the input files and cached model packages that a config names, by their keys.

    A record of a file has ``size`` (bytes), ``mtime`` (ns) and ``sample``, a digest of its bytes,
    or of pieces if it is large. A folder with more than 200 files, or under another key than
    ``path``, ``paths`` or ``package``, is one record with ``many``, the number of files,
    ``sample``, a digest of their names and sizes, and ``newest`` (ns); so is a store of distinf,
    with ``made``, when it was created.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for section, own in _sections(config).items():
        for key, text in inputs(own, section).items():
            # A folder that contains the working folder is more than an input.
            if "://" not in text and not lies_in(os.getcwd(), text):
                found[key] = _record(Path(text), re.search(_INPUT, key) is not None)
    for key, folders in cached_folders(config):
        records = [_record(folder, True) for folder in folders if folder.is_dir()]
        merged = {name: own for record in records for name, own in record.items()}
        if merged:
            found[key] = merged
    return found


def read_code(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the version, or a digest of the files, of each other package that a config names.

    Also the scheme of a model of distinf, where earlier stores were made with another one.
    """
    found: dict[str, str] = {}
    for section in _sections(config).values():
        for target in _targets(section):
            if target in _SCHEMES:
                found[f"the scheme of {target}"] = _SCHEMES[target]
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
    """Version of an installed package, else a digest of its source files."""
    if "site-packages" in origin.parts:
        with suppress(PackageNotFoundError):
            return version(top)
    files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(origin.parent)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def _record(path: Path, is_input: bool) -> dict[str, dict[str, Any]]:
    """Record a file, or a folder: each file of an input that is not too large, else all as one."""
    if path.is_file():
        return {path.name: _fingerprint(path)}
    names = sorted(
        str(own.relative_to(path))
        for own in path.rglob("*")
        if own.is_file() and own.name != "cache"  # fsspec's list of what it has cached
    )
    names = [name for name in names if not name.startswith(".distinf.")]  # locks and saved states
    made = _made(path)
    if is_input and len(names) <= _MANY and not made:
        return {name: _fingerprint(path / name) for name in names}
    digest, newest = hashlib.sha256(), 0
    for name in names:
        state = (path / name).stat()
        digest.update(f"{name} {state.st_size}\n".encode())
        newest = max(newest, state.st_mtime_ns)
    sample = digest.hexdigest()[:16]
    return {path.name: {"many": len(names), "sample": sample, "newest": newest, **made}}


def _made(path: Path) -> dict[str, str]:
    """When distinf created a store: unlike its files, this stays when its run is resumed."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        history = json.loads((path / "zarr.json").read_bytes())["attributes"]["history"]
        if found := re.match(r"(\S+) created by distinf", history):
            return {"made": found[1]}
    return {}


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
