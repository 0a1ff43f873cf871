"""Import what could use torch's compiler without importing the compiler itself.

Importing the compiler takes as long as importing torch. torch-harmonics compiles one of its
methods when it is imported, and tensordict, which PhysicsNeMo imports, names functions that the
compiler may keep as they are. Few runs compile anything, so here both happen when something does.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
# Functions of torch.compiler that import the compiler in order to mark a function.
_MARKS = ("allow_in_graph", "assume_constant_result")

_lock = threading.Lock()
_inside = 0  # threads inside `delayed_compiler`
_own: dict[str, Any] = {}
_marked: list[tuple[str, Any]] = []


def import_early(*modules: str) -> None:
    """Import modules now rather than in the first call, without the compiler."""
    with delayed_compiler():
        for module in modules:
            importlib.import_module(module)


@contextmanager
def delayed_compiler() -> Iterator[None]:
    """Let what is imported in the block compile and mark functions later, when it is needed."""
    global _inside
    import torch.compiler

    with _lock:
        _inside += 1
        if _inside == 1 and _COMPILER not in sys.modules:
            _delay(torch)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _own:
                torch.compile = _own.pop("compile")
                for name in _MARKS:
                    setattr(torch.compiler, name, _own.pop(name))


def _delay(torch: Any) -> None:
    _own["compile"] = torch.compile
    torch.compile = functools.partial(_compile_later, torch.compile)
    for name in _MARKS:
        _own[name] = getattr(torch.compiler, name)
        setattr(torch.compiler, name, functools.partial(_mark_later, name))
    if not any(isinstance(finder, _Marker) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Marker())


def _compile_later(compile_now: Callable[..., Any], model: Any = None, **options: Any) -> Any:
    if not isinstance(model, FunctionType):  # a module, or the options of a decorator
        return compile_now(model, **options)

    @functools.cache
    def compiled() -> Any:
        return compile_now(model, **options)

    @functools.wraps(model)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


def _mark_later(name: str, function: Any) -> Any:
    if _COMPILER in sys.modules:  # by another thread, since the block began
        return _own[name](function)
    _marked.append((name, function))
    return function


class _Marker(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Marks functions as soon as the compiler is imported, by whomever."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _COMPILER:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(name)
        if found is not None:
            self._loader: Any = found.loader
            found.loader = self
        return found

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        for name, function in _marked:
            getattr(module, name)(function)
        _marked.clear()
