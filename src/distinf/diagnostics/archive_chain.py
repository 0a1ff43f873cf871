"""A chain of diagnostics whose worker reads the states itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from distinf.coords import Coords, Selection, State, plan, plan_key
from distinf.diagnostics.chain import Chain
from distinf.diagnostics.inputs import names_in
from distinf.errors import ConfigError
from distinf.loading import Archive, import_first


class ArchiveChain:
    """A `Chain` that is given the coords of a step, and reads what it needs of its state.

    ``source`` returns the data source; ``chain`` the chain. Raises `ConfigError` if the chain takes
    all variables and the source does not list them.
    """

    def __init__(self, source: Callable[[], Any], chain: Callable[[], Chain]) -> None:
        self._archive = Archive(source())
        self._chain = chain()
        self._needed = self._chain.input_coords()
        names = names_in(self._needed) or self._archive.variables
        if names is None:
            raise ConfigError(
                f"{self._chain.label} takes all variables of a state, and the data does not list "
                "its variables"
            )
        self._names = names
        self._cuts: dict[tuple[object, ...], Selection] = {}
        self._device = torch.device("cpu")

    @property
    def label(self) -> str:
        """Class of the model that runs, for errors."""
        return self._chain.label

    def to(self, device: torch.device) -> ArchiveChain:
        """Move every model to a device and prepare it, and what reads, for inference."""
        import_first("earth2studio.data")  # reads a state
        self._device = torch.device(device)
        self._chain = self._chain.to(device)
        return self

    def output_coords(self, step: Coords) -> dict[str, Coords]:
        """Coordinates of what is stored of each link's result for a step.

        Raises `ConfigError` if the archive lacks what a link needs.
        """
        coords = self._archive.coords(step, self._names)
        return self._chain.output_coords(self._cut(coords).select_coords(coords))

    def variable_attributes(self) -> dict[str, dict[str, str]]:
        """``units`` and ``long_name`` of variables in the store, where the models have them."""
        return self._chain.variable_attributes()

    def write_to(self, *store: Any) -> None:
        """From now on, write results into a store; the arguments are those of `RemoteWriter`."""
        self._chain.write_to(*store)

    def read_ahead(self, step: Coords) -> State:
        """Read what the chain needs of a step's state: the arguments of :meth:`forward`.

        The worker calls it while another call computes.
        """
        x, coords = self._archive.read(step, self._names)
        state = self._cut(coords)(x, coords)
        read = self._chain.read_ahead
        return state if read is None else read(*state)

    def forward(self, x: torch.Tensor, coords: Coords) -> Any:
        """Run the chain on a state, as `Chain.forward`."""
        return self._chain.forward(x.to(self._device), coords)

    def _cut(self, coords: Coords) -> Selection:
        key = plan_key(coords)
        if key not in self._cuts:
            self._cuts[key] = plan(coords, self._needed, self._chain.label, "the archive")
        return self._cuts[key]
