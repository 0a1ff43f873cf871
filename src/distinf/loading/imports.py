"""Earth2Studio's imports, made faster.

Each of its models and data sources calls `inspect.stack` when it is imported, and uses only a file
name of it. `inspect.stack` also looks up the source file and line of every frame, which takes four
fifths of the time of these imports. Here it gives the names that the frames hold themselves.

The imports create a million objects that stay. Garbage collection would search them again and
again, a seventh of the remaining time, and later for 0.7 s each time. So it is off during the
imports, and leaves these objects out afterwards.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from distinf.compiler import delayed_compiler

_ORDER = (
    "earth2studio.data",
    "earth2studio.models.dx",
    "earth2studio.models.px",
    "earth2studio.perturbation",
)


def import_first(target: str) -> None:
    """Import the packages that a class of Earth2Studio needs; nothing for any other target."""
    for number, module in enumerate(_ORDER):
        if target.startswith(module):
            with delayed_compiler(), _stack_without_sources(), _no_garbage_collection():
                for before in _ORDER[: number + 1]:
                    importlib.import_module(before)


@contextmanager
def _stack_without_sources() -> Iterator[None]:
    """Let `inspect.stack` look up no sources during the block."""
    whole = inspect.stack

    def stack(context: int = 1) -> list[inspect.FrameInfo]:
        found: list[inspect.FrameInfo] = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            found.append(
                inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None)
            )
            frame = frame.f_back
        return found

    inspect.stack = stack
    try:
        yield
    finally:
        inspect.stack = whole


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect no garbage during the block; afterwards skip the objects that exist then."""
    wanted = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if wanted:
            gc.enable()
