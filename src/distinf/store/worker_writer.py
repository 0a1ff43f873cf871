"""Workers write their own results (``output.writer=workers``); the driver marks them complete."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import zarr

from distinf.coords import Coords
from distinf.errors import ConfigError
from distinf.store.destination import Destination, find_destination
from distinf.store.files import Files, Written
from distinf.store.holder import MEETING
from distinf.store.marks import Marks

__all__ = ["RemoteWriter", "meeting_place"]

Fields = tuple[torch.Tensor, Coords]


class RemoteWriter:
    """Writes the results of one worker into the store that the driver has made.

    Parameters
    ----------
    path : str
        The store.
    word : str
        What the driver has left there: see `meeting_place`.
    axes : Coords
        Its leading dimensions.
    diagnostics : Mapping[str, Coords]
        Output coords of each diagnostic of the store.
    rank : int
        This process.

    Raises
    ------
    ConfigError
        If this process does not see the driver's store under this path.
    """

    def __init__(
        self, path: str, word: str, axes: Coords, diagnostics: Mapping[str, Coords], rank: int
    ) -> None:
        destination = find_destination(path)
        try:
            same = destination.get(MEETING).decode() == word
        except Exception as error:  # of any file system or object store
            raise _unreachable(path, f"{type(error).__name__}: {error}") from error
        if not same:
            raise _unreachable(path, "another store is there")
        group = zarr.open_group(destination.open(), mode="r+", use_consolidated=False)
        self._marks = Marks(group, axes, diagnostics, path)
        self._files = Files(group, axes, diagnostics, self._marks, destination, path, None, rank)

    def write(self, results: Mapping[str, Fields]) -> dict[str, Written]:
        """Write what is not in the store yet of a chain's results.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        return {
            name: self._files.write(name, x, coords)
            for name, (x, coords) in results.items()
            if not self._marks.is_complete(name, coords)
        }


@contextmanager
def meeting_place(destination: Destination) -> Iterator[str]:
    """Leave a word in a store while other ranks open it, so that they know it is the same."""
    word = secrets.token_hex(8)
    destination.put(MEETING, word.encode())
    try:
        yield word
    finally:
        destination.remove(MEETING)


def _unreachable(path: str, why: str) -> ConfigError:
    return ConfigError(
        f"output.writer=workers: this rank does not reach the driver's store {path} ({why}). "
        "Choose a parameters.output_path that all ranks share, or output.writer=driver"
    )
