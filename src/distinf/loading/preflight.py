"""Checks of what a config names, before anything is imported or fetched.

Importing Earth2Studio's prognostics takes ten seconds, parsing one of its source files some
milliseconds. So the check for misspelt models and settings reads source files only.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from distinf.errors import ConfigError

# Hosts of default packages, by the scheme of their URL.
_HOSTS = {"hf": "huggingface.co", "ngc": "api.ngc.nvidia.com"}
# Host of each data source, and its folder in Earth2Studio's cache.
_DATA = {
    "earth2studio.data.GFS": ("noaa-gfs-bdp-pds.s3.amazonaws.com", "gfs"),
    "earth2studio.data.IFS": ("ecmwf-forecasts.s3.amazonaws.com", "ifs"),
    "earth2studio.data.ARCO_ERA5": ("storage.googleapis.com", "arco_era5"),
    "earth2studio.data.CDS_ERA5": ("cds.climate.copernicus.eu", "cds_era5"),
}
# Their errors are no subclasses of ConnectionError.
_NETWORK = ("aiohttp", "botocore", "httpcore", "httpx", "obstore", "requests", "urllib3")


@dataclass(frozen=True)
class Declared:
    """A class or function in a source file."""

    node: ast.ClassDef | ast.FunctionDef
    path: Path
    module: str

    def method(self, name: str) -> ast.FunctionDef | None:
        """Find a method here or in a base class of the same library."""
        if isinstance(self.node, ast.FunctionDef):
            return None
        for item in self.node.body:
            if isinstance(item, ast.FunctionDef) and item.name == name:
                return item
        for base in self.node.bases:
            if isinstance(base, ast.Name):
                found = _find_in(self.path, self.module, base.id)
                if found is not None and (method := found.method(name)) is not None:
                    return method
        return None

    def parameters(self, method: str = "__init__") -> list[str] | None:
        """Parameters of the function, or of a method of the class; None if it takes any name."""
        is_function = isinstance(self.node, ast.FunctionDef)
        found = self.node if isinstance(self.node, ast.FunctionDef) else self.method(method)
        if found is None or found.args.kwarg is not None:
            return None
        names = [arg.arg for arg in (*found.args.posonlyargs, *found.args.args)]
        return names[0 if is_function else 1 :] + [arg.arg for arg in found.args.kwonlyargs]

    def missing_extra(self) -> tuple[str, str] | None:
        """Extra of Earth2Studio that its file needs, and the first module that is not installed."""
        for node in _parse(self.path).body:
            if not isinstance(node, ast.Try):
                continue
            handlers = "\n".join(map(ast.unparse, node.handlers))
            extra = re.search(r"OptionalDependencyFailure\('(.+?)'", handlers)
            for module in _imported(node.body):
                if extra is not None and importlib.util.find_spec(module) is None:
                    return extra[1], module
        return None

    def strings(self, method: str) -> list[str]:
        """Return the string constants in a method."""
        found = self.method(method)
        nodes = ast.walk(found) if found is not None else []
        return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def find(target: str, where: str) -> Declared | None:
    """Find the definition of a class or function without importing it.

    None if only an import can show it. Raises `ConfigError`, with ``where`` and a similar name, if
    it does not exist.
    """
    module, _, name = target.rpartition(".")
    path = _source_of(module)
    if path is None:
        raise ConfigError(f"{where}={target} cannot be imported: there is no module {module}")
    names = _definitions(path)
    if name not in names:
        there = sorted(n for n in names if n[:1].isupper() == name[:1].isupper() and n[:1] != "_")
        close = difflib.get_close_matches(name, there, n=1)
        meant = f" Did you mean {module}.{close[0]}?" if close else ""
        raise ConfigError(
            f"{where}={target} cannot be imported: {module} has no {name}.{meant} "
            f"It has {', '.join(there)}"
        )
    return _find_in(path, module, name)


def _source_of(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    place = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    # A package that imports its names on first use lists them in a stub.
    inside = (place / "__init__.pyi", place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((path for path in inside if path.is_file()), None)


def _imported(body: list[ast.stmt]) -> list[str]:
    """Top-level names of the modules that statements import."""
    names: list[str] = []
    for node in body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.append(node.module)
    return [name.split(".")[0] for name in names]


@lru_cache(maxsize=64)
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _definitions(path: Path) -> dict[str, ast.stmt]:
    """Top-level names of a source file, and the statement that defines or imports each."""
    found: dict[str, ast.stmt] = {}
    for node in _parse(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found.update((alias.asname or alias.name, node) for alias in node.names)
        elif isinstance(node, ast.Assign):
            found.update((t.id, node) for t in node.targets if isinstance(t, ast.Name))
    return found


def _find_in(path: Path, module: str, name: str) -> Declared | None:
    """Find a definition in a source file, or where the file imports it from in its library."""
    node = _definitions(path).get(name)
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return Declared(node, path, module)
    if not isinstance(node, ast.ImportFrom):
        return None
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    source = _source_of(origin) if origin.split(".")[0] == module.split(".")[0] else None
    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    return _find_in(source, origin, original) if source is not None else None


def check_reachable(given: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError` if a default package or data is not cached and its host has no address.

    ``where`` is the section. Other failures show when it is fetched.
    """
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy")):
        return  # the proxy resolves names
    target, kind = given.get("_target_"), given.get("kind")
    if target == "distinf.loading.load_model" and given.get("package") is None:
        url, folders = _default_package(given, where)
        host = _HOSTS.get(url.partition("://")[0])
        if host is not None and (why := _out_of_reach(host, folders, "MODEL")) is not None:
            name = given["model"].rpartition(".")[2]
            raise ConfigError(f"{where}: {unfetched(url, name, why)}")
    elif target == "distinf.loading.load_data" and kind in _DATA and "source" not in given:
        host, folder = _DATA[kind]
        if (why := _out_of_reach(host, [folder], "DATA")) is not None:
            raise ConfigError(unread(kind.rpartition(".")[2], why))


def cached_folders(config: Mapping[str, Any]) -> Iterator[tuple[str, list[Path]]]:
    """Yield the key of each model package of a config, and its folders in Earth2Studio's cache."""
    sections = {f"diagnostic.{name}": own for name, own in (config.get("diagnostic") or {}).items()}
    sections["prognostic"] = config.get("prognostic") or {}
    for where, given in sections.items():
        if not isinstance(given, Mapping):
            continue
        package = given.get("package")
        if given.get("_target_") != "distinf.loading.load_model":
            continue
        if package is None:
            yield f"{where}.package", _cached("MODEL", _default_package(given, where)[1])
        elif "://" in package:
            folder = os.path.join("packages", cache_name(package))
            yield f"{where}.package", _cached("MODEL", [folder])


def cache_name(package: str) -> str:
    """Name of the folder in which a package with this URL is cached."""
    return "".join(c if c.isalnum() or c in "._-@" else "_" for c in package)


def _default_package(given: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """URL of a model's default package, and names of its folders in the cache."""
    declared = find(given["model"], f"{where}.model")
    texts = declared.strings("load_default_package") if declared is not None else []
    url = next((text for text in texts if "://" in text), "")
    return url, [text for text in texts if text and "://" not in text and "/" not in text]


def cache_home(kind: str) -> str:
    """Earth2Studio's cache of a kind, ``"MODEL"`` or ``"DATA"``."""
    home = os.path.join(os.path.expanduser("~"), ".cache", "earth2studio")
    home = os.environ.get("EARTH2STUDIO_CACHE", home)
    return os.environ.get(f"EARTH2STUDIO_{kind}_CACHE", home)


def _cached(kind: str, folders: list[str]) -> list[Path]:
    return [Path(cache_home(kind), folder) for folder in folders]


def _out_of_reach(host: str, folders: list[str], cache: str) -> str | None:
    """Why a host has no address; None if it has one, or one of the cache's folders holds files."""
    if any(path.is_dir() and any(path.iterdir()) for path in _cached(cache, folders)):
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"{host}: {error.strerror}"
    return None


def unfetched(package: str, name: str, why: str) -> str:
    """Message for a package that cannot be fetched."""
    return (
        f"package {package} of {name} could not be fetched ({why}). Run once where there is a "
        "network, so that it is cached, or name a local copy: package=/path/to/folder"
    )


def unread(name: str, why: str) -> str:
    """Message for a data source that cannot be reached."""
    return (
        f"data: {name} cannot be reached ({why}). Run once where there is a network, so that it "
        "is cached, or name a local file: data=file data.path=/path"
    )


def unreachable(error: BaseException) -> str | None:
    """Describe the failure of the network behind an error in one line; None if there is none."""
    seen: set[int] = set()  # a chain of causes may be circular
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        library = type(cause).__module__.split(".")[0]
        if isinstance(cause, ConnectionError | TimeoutError) or library.startswith(_NETWORK):
            text = str(cause).split("\n")[0].strip() or type(cause).__name__
            return text if len(text) <= 300 else text[:300] + "..."
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return None
