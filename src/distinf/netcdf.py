"""A store as one NetCDF file, for tools that read no Zarr."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import xarray as xr

from distinf.errors import StoreError

__all__ = ["to_netcdf"]


def to_netcdf(store: str, path: str) -> None:
    """Write a store into a compressed NetCDF-4 file, step by step, so that memory stays small.

    Parameters
    ----------
    store : str
        Path or URL of the store.
    path : str
        The file; it appears when it is whole, in place of an earlier one.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    part = f"{path}.part"
    try:
        with xr.open_zarr(store, chunks={}) as dataset:
            packed: dict[Any, dict[str, Any]] = {
                name: {"zlib": True, "complevel": 1}
                for name, array in dataset.data_vars.items()
                if array.dtype.kind == "f"
            }
            for array in dataset.variables.values():
                array.encoding.clear()
            dataset.to_netcdf(part, engine="netcdf4", encoding=packed)
        os.replace(part, path)
    except Exception as error:
        Path(part).unlink(missing_ok=True)
        raise StoreError(
            f"output.netcdf={path} could not be written: {type(error).__name__}: {error}; "
            f"the store {store} is complete"
        ) from error
