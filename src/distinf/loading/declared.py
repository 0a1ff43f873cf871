"""What a class or function declares, read from its source text.

Importing its prognostics takes ten seconds, reading one file some milliseconds: so a misspelt
model or setting is answered before anything is loaded.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from distinf.errors import ConfigError

__all__ = ["Declared", "find"]


@dataclass(frozen=True)
class Declared:
    """A class or function in a source file.

    Parameters
    ----------
    node : ast.ClassDef | ast.FunctionDef
        Its definition.
    path : Path
        The file.
    module : str
        The module's dotted name.
    """

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
        """Names that calling it takes; of a class, one of its methods, without the first.

        None if it takes any name, or if only importing it would tell.
        """
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

    Parameters
    ----------
    target : str
        Its dotted name, such as ``"earth2studio.models.px.FCN"``.
    where : str
        The key of the config that names it, for errors.

    Returns
    -------
    Declared | None
        None if it is defined in a way that only importing shows.

    Raises
    ------
    ConfigError
        If there is no such module, or no such name in it; names what is similar.
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
