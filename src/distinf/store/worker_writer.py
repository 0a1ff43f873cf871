"""Ranks write their own results into the driver's store; the driver marks them complete.

So it is with ``output.writer=workers`` and with several drivers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distinf.coords import State
from distinf.errors import ConfigError, StoreError
from distinf.store.chunks import Chunks, Marks, Written
from distinf.store.contents import TOKEN, Destination
from distinf.store.destination import find_destination
from distinf.store.schema import StoreLayout, open_layout


@dataclass(frozen=True)
class WriterTicket:
    """What a worker needs to write into the driver's store."""

    path: str
    token: str  # in a file of the store, by which a worker verifies that it sees the same store
    layout: StoreLayout


def reach(ticket: WriterTicket) -> Destination:
    """Return where the driver's store is; raise `ConfigError` if this process does not see it."""
    destination = find_destination(ticket.path)
    try:
        if destination.get(TOKEN).decode() != ticket.token:
            raise StoreError("another store is there")
    except Exception as error:  # of any file system or object store
        raise ConfigError(
            f"this rank does not reach the driver's store {ticket.path} "
            f"({type(error).__name__}: {error}). Choose a parameters.output_path that all ranks "
            "share, or output.writer=driver and runtime.drivers=1"
        ) from error
    return destination


class RemoteWriter:
    """Writes the results of one worker, ``rank``, into the store that the driver has created.

    ``ticket`` is of `ForecastStore.writer_ticket`. Raises `ConfigError` if this process does not
    see the driver's store under its path.
    """

    def __init__(self, ticket: WriterTicket, rank: int) -> None:
        layout, destination = ticket.layout, reach(ticket)
        group = open_layout(destination, layout)
        self._marks = Marks(group, layout, ticket.path)
        self._chunks = Chunks(group, layout, self._marks, destination, rank=rank)

    def write(self, results: Mapping[str, State]) -> dict[str, Written]:
        """Write those results of a chain that the store lacks; raise `StoreError` if it fails."""
        return {
            name: self._chunks.write(name, x, coords)
            for name, (x, coords) in results.items()
            if not self._marks.is_complete(name, coords)
        }
