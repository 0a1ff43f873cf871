"""Workers write their own results (``output.writer=workers``); the driver marks them complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distinf.coords import State
from distinf.errors import ConfigError, StoreError
from distinf.store.chunks import Chunks, Marks, Written
from distinf.store.contents import TOKEN
from distinf.store.destination import find_destination
from distinf.store.schema import StoreLayout, open_layout


@dataclass(frozen=True)
class WriterTicket:
    """What a worker needs to write into the driver's store."""

    path: str
    token: str  # in a file of the store, by which a worker verifies that it sees the same store
    layout: StoreLayout


class RemoteWriter:
    """Writes the results of one worker, ``rank``, into the store that the driver has created.

    ``ticket`` is of `ForecastStore.writer_ticket`. Raises `ConfigError` if this process does not
    see the driver's store under its path.
    """

    def __init__(self, ticket: WriterTicket, rank: int) -> None:
        path, layout = ticket.path, ticket.layout
        destination = find_destination(path)
        try:
            if destination.get(TOKEN).decode() != ticket.token:
                raise StoreError("another store is there")
        except Exception as error:  # of any file system or object store
            raise ConfigError(
                f"output.writer=workers: this rank does not reach the driver's store {path} "
                f"({type(error).__name__}: {error}). Choose a parameters.output_path that all "
                "ranks share, or output.writer=driver"
            ) from error
        group = open_layout(destination, layout)
        self._marks = Marks(group, layout, path)
        self._chunks = Chunks(group, layout, self._marks, destination, rank=rank)

    def write(self, results: Mapping[str, State]) -> dict[str, Written]:
        """Write those results of a chain that the store lacks; raise `StoreError` if it fails."""
        return {
            name: self._chunks.write(name, x, coords)
            for name, (x, coords) in results.items()
            if not self._marks.is_complete(name, coords)
        }
