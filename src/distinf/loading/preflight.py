"""What a config names, checked before anything is imported or fetched.

Importing Earth2Studio's prognostics takes ten seconds, reading one of its source files some
milliseconds: so a misspelt model or setting is answered at once, and so is a package or data
source that is out of reach.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from distinf.errors import ConfigError

# Where default packages come from.
_HOSTS = {"hf": "huggingface.co", "ngc": "api.ngc.nvidia.com"}
# Where data comes from, and its folder in Earth2Studio's cache.
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
        """Names that a call of it, or of a method, takes; None if any, or if that is unknown."""
        is_function = isinstance(self.node, ast.FunctionDef)
        found = self.node if isinstance(self.node, ast.FunctionDef) else self.method(method)
        if found is None and method == "__init__":
            return self._fields()
        if found is None or found.args.kwarg is not None:
            return None
        names = [arg.arg for arg in (*found.args.posonlyargs, *found.args.args)]
        return names[0 if is_function else 1 :] + [arg.arg for arg in found.args.kwonlyargs]

    def _fields(self) -> list[str] | None:
        decorators = " ".join(ast.unparse(item) for item in self.node.decorator_list)
        if "dataclass" not in decorators:
            return None
        items = [item.target for item in self.node.body if isinstance(item, ast.AnnAssign)]
        return [item.id for item in items if isinstance(item, ast.Name)]

    def missing_extra(self) -> tuple[str, str] | None:
        """Extra that its file needs and the first module of it that is not installed."""
        for node in _parse(self.path).body:
            if not isinstance(node, ast.Try):
                continue
            groups = [
                call.args[0].value
                for handler in node.handlers
                for call in ast.walk(handler)
                if isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id == "OptionalDependencyFailure"
                and call.args
                and isinstance(call.args[0], ast.Constant)
            ]
            for module in _imported(node.body):
                if groups and importlib.util.find_spec(module) is None:
                    return str(groups[0]), module
        return None

    def strings(self, method: str) -> list[str]:
        """Return the string constants in a method."""
        found = self.method(method)
        nodes = ast.walk(found) if found is not None else []
        return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def find(target: str, where: str) -> Declared | None:
    """Find the definition of a class or function without importing it.

    None if only importing shows how it is defined; a ConfigError that names ``where`` and what is
    similar if it does not exist.
    """
    module, _, name = target.rpartition(".")
    path = _source_of(module)
    if path is None:
        raise ConfigError(f"{where}={target} cannot be imported: there is no module {module}")
    names = _names_in(path)
    if name not in names:
        _no_such_name(name, names, module, where)
    return _find_in(path, module, name)


def _no_such_name(name: str, names: set[str], module: str, where: str) -> NoReturn:
    there = sorted(n for n in names if n[:1].isupper() == name[:1].isupper() and n[:1] != "_")
    close = difflib.get_close_matches(name, there, n=1)
    meant = f" Did you mean {module}.{close[0]}?" if close else ""
    raise ConfigError(
        f"{where}={module}.{name} cannot be imported: {module} has no {name}.{meant} "
        f"It has {', '.join(there)}"
    )


def _source_of(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    place = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    # A package whose names are imported on first use lists them in a stub.
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


def _names_in(path: Path) -> set[str]:
    names: set[str] = set()
    for node in _parse(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(t.id for t in node.targets if isinstance(t, ast.Name))
    return names


def _find_in(path: Path, module: str, name: str) -> Declared | None:
    for node in _parse(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return Declared(node, path, module)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    origin = _absolute(node, module, path.stem == "__init__")
                    same = origin.split(".")[0] == module.split(".")[0]
                    source = _source_of(origin) if same else None
                    return _find_in(source, origin, alias.name) if source else None
    return None


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def check_reachable(given: Mapping[str, Any], where: str) -> None:
    """Refuse a default package or data that is not cached and whose host has no address here.

    ``where`` names the section. Any other failure shows when it is fetched.
    """
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy")):
        return  # names are resolved there
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
            yield f"{where}.package", _cache("MODEL", _default_package(given, where)[1])
        elif "://" in package:
            yield f"{where}.package", _cache("MODEL", [os.path.join("packages", one_word(package))])


def one_word(package: str) -> str:
    """Name of the folder in which a package with this URL is cached."""
    return "".join(c if c.isalnum() or c in "._-@" else "_" for c in package)


def _default_package(given: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """URL of a model's default package, and names of its folders in the cache."""
    declared = find(given["model"], f"{where}.model")
    texts = declared.strings("load_default_package") if declared is not None else []
    url = next((text for text in texts if "://" in text), "")
    return url, [text for text in texts if text and "://" not in text and "/" not in text]


def _cache(kind: str, folders: list[str]) -> list[Path]:
    home = os.path.join(os.path.expanduser("~"), ".cache", "earth2studio")
    home = os.environ.get("EARTH2STUDIO_CACHE", home)
    home = os.environ.get(f"EARTH2STUDIO_{kind}_CACHE", home)
    return [Path(home, folder) for folder in folders]


def _out_of_reach(host: str, folders: list[str], cache: str) -> str | None:
    """Why a host cannot be reached; None if it can, or one of the cache's folders holds files."""
    paths = _cache(cache, folders)
    if any(path.is_dir() and any(path.iterdir()) for path in paths):
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"{host}: {error.strerror}"
    return None


def unfetched(package: str, name: str, why: str) -> str:
    """Say that a package is out of reach, and what to do."""
    return (
        f"package {package} of {name} could not be fetched ({why}). Run once where there is a "
        "network, so that it is cached, or name a local copy: package=/path/to/folder"
    )


def unread(name: str, why: str) -> str:
    """Say that a data source is out of reach, and what to do."""
    return (
        f"data: {name} cannot be reached ({why}). Run once where there is a network, so that it "
        "is cached, or name a local file: data=file data.path=/path"
    )


def unreachable(error: BaseException) -> str | None:
    """Say in a line why the network failed; None if an error and its causes are no such failure."""
    for cause in _chain(error):
        library = type(cause).__module__.split(".")[0]
        if isinstance(cause, ConnectionError | TimeoutError) or library.startswith(_NETWORK):
            text = str(cause).split("\n")[0].strip() or type(cause).__name__
            return text if len(text) <= 300 else text[:300] + "..."
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
