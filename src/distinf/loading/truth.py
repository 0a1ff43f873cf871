"""What forecasts are compared with: fields of a data source at valid times."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distinf.coords import Coords, Selection, State, plan, plan_key, step_words
from distinf.errors import ConfigError
from distinf.loading.archive import Archive
from distinf.loading.load import load_section

if TYPE_CHECKING:
    import torch

_WHERE = "output.verification"
_SAME = 1e-4  # degrees; rounding to float32 changes coordinates by less
_KEPT = 4  # states that are kept for other members and diagnostics of the same time


class Truth:
    """Fields of a data source at valid times, on the grids of others.

    Parameters
    ----------
    data : Mapping[str, Any]
        Section with ``_target_`` of an Earth2Studio data source of analyses.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._archive = Archive(load_section(data, f"{_WHERE}.data"))
        self._kept: OrderedDict[tuple[Any, ...], State] = OrderedDict()
        self._cuts: dict[tuple[Any, ...], Selection] = {}
        self._turn = threading.Lock()

    def read(self, valid: np.datetime64, variables: Sequence[str]) -> State:
        """Read [time=1, lead_time=1, variable, ...] at a time, float32 on the host.

        Raises `ConfigError` if the source does not have it.
        """
        key = (valid, *variables)
        with self._turn:
            if key not in self._kept:
                step: Coords = OrderedDict(
                    time=np.array([valid]), lead_time=np.array([0], "timedelta64[ns]")
                )
                try:
                    self._archive.coords(step, variables)  # names what is missing
                    self._kept[key] = self._archive.read(step, variables)
                except Exception as error:
                    raise ConfigError(
                        f"{_WHERE}: its data cannot be read{step_words(step)}: {error}"
                    ) from error
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return self._kept[key]

    def on_grid(self, valid: np.datetime64, coords: Coords) -> torch.Tensor:
        """Read the variables of ``coords`` at a time [variable, *grid], at its points.

        Raises `ConfigError` if the source does not have exactly these points.
        """
        names = [str(v) for v in coords["variable"]]
        x, there = self.read(valid, names)
        wanted = OrderedDict((key, coords[key]) for key in ("lat", "lon"))
        grids = (plan_key(there), plan_key(wanted))
        if grids not in self._cuts:
            for key, values in wanted.items():
                _check_points(key, there[key], values)
            self._cuts[grids] = plan(there, wanted, _WHERE, "its data")
        return self._cuts[grids](x, there)[0][0, 0]


def _check_points(key: str, there: np.ndarray, values: np.ndarray) -> None:
    if values.ndim > 1 or there.ndim > 1:
        return  # `plan` compares them
    off = np.abs(there[:, np.newaxis] - values)
    if key == "lon":
        off = np.minimum(off % 360, -off % 360)
    if off.min(axis=0).max() > _SAME:
        worst = values[np.argmax(off.min(axis=0))]
        raise ConfigError(
            f"{_WHERE}: its data has no {key} {worst:g}; fields are compared at the same points, "
            "so choose data on the grid of the forecast"
        )
