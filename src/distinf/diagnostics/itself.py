"""A diagnostic that returns variables of the state itself, so that a worker stores them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch

from distinf.coords import Coords, State


class Itself:
    """Returns its input: ``variables`` of a state."""

    def __init__(self, variables: Sequence[str]) -> None:
        self._variables = np.array(variables)

    def input_coords(self) -> Coords:
        """Return the variables; all of the grid."""
        return OrderedDict(variable=self._variables)

    def output_coords(self, coords: Coords) -> Coords:
        """Return the coords of its input."""
        return coords

    def __call__(self, x: torch.Tensor, coords: Coords) -> State:
        """Return its input."""
        return x, coords
