"""Earth2Studio's slow imports, in the way that takes least time.

Each of its models looks at the whole call stack when it is imported, and reads nothing there but a
file name. `inspect.stack` looks up the source line of every frame as well, going through all
modules each time: most of the time of these imports. So the source lines are left out, and
the modules are imported from here, one after the other, rather than from deep within another one.

They leave a million objects, for ever. Looking through these for garbage, again and again while
they come, takes a seventh of the rest, and afterwards 0.7 s each time, in which the process does
nothing else. So there is none of it meanwhile, and these objects are left out later.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ORDER = (
    "earth2studio.data",
    "earth2studio.models.dx",
    "earth2studio.models.px",
    "earth2studio.perturbation",
)


def import_first(target: str) -> None:
    """Import what a class of Earth2Studio stands on.

    Parameters
    ----------
    target : str
        Its dotted name; of anything else nothing is imported.
    """
    for number, module in enumerate(_ORDER):
        if target.startswith(module):
            with _stack_without_source_lines(), _no_garbage():
                for before in _ORDER[: number + 1]:
                    importlib.import_module(before)


@contextmanager
def _stack_without_source_lines() -> Iterator[None]:
    """Give the frames of `inspect.stack` without their source lines for a while."""
    whole = inspect.stack

    def stack(context: int = 1) -> list[inspect.FrameInfo]:
        return inspect.getouterframes(sys._getframe(1), 0)

    inspect.stack = stack
    try:
        yield
    finally:
        inspect.stack = whole


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Look for no garbage for a while, and never again among what is there then."""
    wanted = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if wanted:
            gc.enable()
