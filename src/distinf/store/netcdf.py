"""A store as one NetCDF file, for tools that read no Zarr."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distinf.coords import step_words
from distinf.errors import StoreError
from distinf.paths import lies_in

log = logging.getLogger("distinf")
# Global attributes: of which store the file is a copy, and which steps that lacked.
_STORE = "distinf_store"
_MISSING = "missing_steps"
_NAMED = 1000  # steps that the attribute names; the marks in the file are complete


def unfinished(path: str) -> str:
    """Return the name that a NetCDF file has while it is written."""
    return f"{path}.part"


def check_netcdf(path: str, store: str, mode: str) -> None:
    """Refuse a NetCDF file that a copy of ``store``, a path or URL, must not replace in this mode.

    Raises `StoreError`, which names the choices; also if its folder does not exist.
    """
    file = Path(path)
    if not file.absolute().parent.is_dir():
        raise StoreError(
            f"output.netcdf={path}: the folder {file.parent} does not exist; make it first"
        )
    if not os.path.lexists(file):
        return
    what = f"output.netcdf={path} exists already"
    if mode == "create":
        raise StoreError(f"{what}; choose another path, or output.mode=overwrite to replace it")
    origin = _origin(file)
    if origin is None:
        raise StoreError(
            f"{what} and distinf did not make it, so output.mode={mode} does not touch it; choose "
            "another path, or remove it"
        )
    if mode == "resume" and not (lies_in(origin, _named(store)) and lies_in(store, origin)):
        source = f"of {origin}" if origin else "of a store that it does not name"
        raise StoreError(
            f"{what} and is a copy {source}, so output.mode=resume of {store} does not touch it; "
            "choose another path, or remove it"
        )


def to_netcdf(store: str, path: str, mode: str = "create") -> None:
    """Write a store into a compressed NetCDF-4 file, step by step, so that memory stays small.

    The file appears when it is whole. Its global attribute ``distinf_store`` names the store,
    ``missing_steps`` the steps that are not complete there; these are logged, too. ``mode`` says
    which file it may replace, as in `check_netcdf`. Raises `StoreError` if it cannot be written.
    """
    import xarray as xr

    partial = unfinished(path)
    try:
        check_netcdf(path, store, mode)
    except StoreError as error:  # the file appeared during the run
        raise StoreError(f"{error}; the store {store} is kept") from None
    try:
        with xr.open_zarr(store, chunks={}) as dataset:
            packed: dict[Any, dict[str, Any]] = {
                name: {"zlib": True, "complevel": 1}
                for name, array in dataset.data_vars.items()
                if array.dtype.kind == "f"
            }
            for array in dataset.variables.values():
                array.encoding.clear()
            dataset.attrs[_STORE] = _named(store)
            missing = list(_missing(dataset))
            if missing:
                more = [f"and {len(missing) - _NAMED} more"] * (len(missing) > _NAMED)
                dataset.attrs[_MISSING] = ", ".join([*missing[:_NAMED], *more])
            dataset.to_netcdf(partial, engine="netcdf4", encoding=packed)
        os.replace(partial, path)
    except Exception as error:
        Path(partial).unlink(missing_ok=True)
        raise StoreError(
            f"output.netcdf={path} could not be written: {type(error).__name__}: {error}; "
            f"the store {store} is kept"
        ) from error
    if missing:
        dots = ", ..." if len(missing) > 5 else ""
        log.warning(
            "output.netcdf=%s lacks %d step(s), listed in its attribute %s: %s%s",
            *(path, len(missing), _MISSING, ", ".join(missing[:5]), dots),
        )


def _named(store: str) -> str:
    """Return the name of a store that is the same from every folder."""
    return store.rstrip("/") if "://" in store else os.path.realpath(store)


def _origin(file: Path) -> str | None:
    """Store that a file is a copy of, empty if it names none; None if distinf did not make it."""
    import netCDF4

    try:
        with netCDF4.Dataset(os.fspath(file)) as there:
            names = set(there.ncattrs())
            if _STORE in names:
                return str(there.getncattr(_STORE))
            # Earlier versions copied the config and the marks only.
            marked = any(name.endswith("_complete") for name in there.variables)
            return "" if "config" in names and marked else None
    except (OSError, RuntimeError):
        return None


def _missing(dataset: Any) -> Iterator[str]:
    """Words for each step that a diagnostic lacks."""
    for name, array in dataset.data_vars.items():
        if array.dtype != bool or not name.endswith("_complete"):
            continue
        for index in np.argwhere(~array.values):
            at = zip(array.dims, index, strict=True)
            coords = {str(dim): dataset[dim].values[i : i + 1] for dim, i in at}
            yield f"{name.removesuffix('_complete')}{step_words(coords)}"
