"""Versions of the libraries that the values of a run depend on."""

from __future__ import annotations

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Versions of what the bytes of a run depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in (
        "distinf",
        "torch",
        "torch-harmonics",
        "earth2studio",
        "nvidia-physicsnemo",
        "zarr",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
