"""Versions of installed packages, and how one is installed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

# The bytes of a run depend on these.
_RECORDED = ("distinf", "torch", "torch-harmonics", "earth2studio", "nvidia-physicsnemo", "zarr")


def versions(packages: Iterable[str] = _RECORDED) -> dict[str, str]:
    """Versions of those of these packages that are installed, by default of those in a store."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def install_command(package: str) -> str:
    """Command that installs a package into this environment; one made by uv has no pip."""
    pip = "pip" if find_spec("pip") is not None else "uv pip"
    return f"{pip} install {shlex.quote(package)}"
