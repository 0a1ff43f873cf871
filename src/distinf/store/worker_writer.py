"""Workers write their own results (``output.writer=workers``); the driver marks them complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import zarr

from distinf.coords import Coords
from distinf.errors import ConfigError
from distinf.store.chunks import Chunks, Marks, Written
from distinf.store.contents import TOKEN, Destination
from distinf.store.destination import find_destination
from distinf.store.schema import StoreLayout

__all__ = ["RemoteWriter", "WriterTicket", "writer_ticket"]

Fields = tuple[torch.Tensor, Coords]


@dataclass(frozen=True)
class WriterTicket:
    """What a worker needs to write into the driver's store."""

    path: str
    token: str
    """What the driver has put into the store, so that the worker verifies that it is the same."""
    layout: StoreLayout


class RemoteWriter:
    """Writes the results of one worker into the store that the driver has created.

    Parameters
    ----------
    ticket : WriterTicket
        Of the store: see `ForecastStore.writer_ticket`.
    rank : int
        This process.

    Raises
    ------
    ConfigError
        If this process does not see the driver's store under this path.
    """

    def __init__(self, ticket: WriterTicket, rank: int) -> None:
        path, layout = ticket.path, ticket.layout
        destination = find_destination(path)
        try:
            same = destination.get(TOKEN).decode() == ticket.token
        except Exception as error:  # of any file system or object store
            raise _unreachable(path, f"{type(error).__name__}: {error}") from error
        if not same:
            raise _unreachable(path, "another store is there")
        group = zarr.open_group(destination.open(), mode="r+", use_consolidated=False)
        self._marks = Marks(group, layout, path)
        self._chunks = Chunks(group, layout, self._marks, destination, rank=rank)

    def write(self, results: Mapping[str, Fields]) -> dict[str, Written]:
        """Write those results of a chain that the store lacks; raise `StoreError` if it fails."""
        return {
            name: self._chunks.write(name, x, coords)
            for name, (x, coords) in results.items()
            if not self._marks.is_complete(name, coords)
        }


@contextmanager
def writer_ticket(destination: Destination, layout: StoreLayout) -> Iterator[WriterTicket]:
    """Put a token into a store, for workers that open it within this block."""
    token = secrets.token_hex(8)
    name = destination.name if "://" in destination.name else os.path.abspath(destination.name)
    destination.put(TOKEN, token.encode())
    try:
        yield WriterTicket(name, token, layout)
    finally:
        destination.remove(TOKEN)


def _unreachable(path: str, why: str) -> ConfigError:
    return ConfigError(
        f"output.writer=workers: this rank does not reach the driver's store {path} ({why}). "
        "Choose a parameters.output_path that all ranks share, or output.writer=driver"
    )
