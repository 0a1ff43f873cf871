"""Versions of installed packages."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

# The bytes of a run depend on these.
_RECORDED = ("distinf", "torch", "torch-harmonics", "earth2studio", "nvidia-physicsnemo", "zarr")


def versions(packages: Iterable[str] = _RECORDED) -> dict[str, str]:
    """Versions of those of these packages that are installed, by default of those in a store."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
