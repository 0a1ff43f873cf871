"""Earth2Studio's slow imports, in the order that takes least time.

Each of its models looks at the whole call stack when it is imported, which costs milliseconds for
every import that is under way. What is imported from here, one after the other, rather than from
deep within another import, takes about half the time.
"""

from __future__ import annotations

import importlib

__all__ = ["import_first"]

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
            for before in _ORDER[: number + 1]:
                importlib.import_module(before)
