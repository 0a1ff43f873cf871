"""Scores of a forecast against a data source, as a diagnostic."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from distinf.coords import Coords, State
from distinf.errors import ConfigError
from distinf.loading import Truth, import_first
from distinf.statistics import SCORES, area_weights, score_names


class Scores:
    r"""Root mean square error and bias of fields, weighted by area.

    With the difference :math:`d` between a field and the data at its valid time, and weights
    :math:`w = \cos\phi` of the latitude, the scores are
    :math:`\sqrt{\sum w d^2 / \sum w}` and :math:`\sum w d / \sum w`, computed in double precision
    by Earth2Studio's statistics. A NaN in one of the fields gives NaN.

    Parameters
    ----------
    data : Mapping[str, Any]
        Section with ``_target_`` of the data source, whose grid has all points of the fields.
    variables : sequence of str, optional
        Variables of its input; by default all that it is given.
    only : sequence of str, optional
        Score these of them; by default all.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        variables: Sequence[str] | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        self._data = data
        self._variables, self._only = list(variables or ()), only
        self._scored: list[str] = []

    def to(self, device: torch.device) -> Scores:
        """Open the data and import what computes; scores are on the device of the fields."""
        import_first("earth2studio.data")
        import_first("earth2studio.statistics")
        _ = self._truth
        return self

    def input_coords(self) -> Coords:
        """Coordinates of its input: ``batch, variable, lat, lon``; the grid is free."""
        return OrderedDict(
            batch=np.empty(0),
            variable=np.array(self._variables),
            lat=np.empty(0),
            lon=np.empty(0),
        )

    def output_coords(self, coords: Coords) -> Coords:
        """Coordinates of the scores: those of the input without a grid.

        Raises `ConfigError` if the input has no grid, or the data not its points or variables.
        """
        scored = self._of(coords)
        if scored["variable"].size:
            self._read(scored)
        return _scores(scored)

    def read_ahead(self, coords: Coords) -> None:
        """Read the data for a step, once it is known of which variables."""
        if self._scored:
            self._truth.read(_valid(coords), self._scored)

    def __call__(self, x: torch.Tensor, coords: Coords) -> State:
        """Score fields [(ensemble=1,) time=1, lead_time=1, variable, lat, lon].

        Returns the scores [..., variable], float32, in the units of the fields, on their device.
        Raises `ConfigError` if the data is not there.
        """
        from earth2studio.statistics import mean, rmse

        scored = self._of(coords)
        names = [str(v) for v in scored["variable"]]
        rows = [i for i, v in enumerate(coords["variable"]) if str(v) in names]
        fields = x.movedim(list(coords).index("variable"), 0)[rows].reshape(len(rows), -1).double()
        truth = self._read(scored).to(x.device).reshape(len(rows), -1).double()
        weights = torch.from_numpy(area_weights(coords["lat"], coords["lon"])).flatten()
        weights = weights.to(x.device)
        flat = OrderedDict(variable=scored["variable"], point=np.arange(len(weights)))
        found = {
            "rmse": rmse(["point"], weights)(fields, flat, truth, flat)[0],
            "bias": mean(["point"], weights)(fields - truth, flat)[0],
        }
        made = _scores(scored)
        y = torch.stack([found[score] for score in SCORES], dim=1).flatten().float()
        return y.reshape([len(v) for v in made.values()]), made

    @cached_property
    def _truth(self) -> Truth:
        return Truth(self._data)

    def _read(self, coords: Coords) -> torch.Tensor:
        self._scored = [str(v) for v in coords["variable"]]
        return self._truth.on_grid(_valid(coords), coords)

    def _of(self, coords: Coords) -> Coords:
        """Coordinates of the scored part of the input."""
        if list(coords)[-3:] != ["variable", "lat", "lon"]:
            raise ConfigError(
                f"output.verification: fields of {', '.join(coords)} have no lat and lon to "
                "compare; name other variables"
            )
        names = [str(v) for v in coords["variable"]]
        names = [name for name in names if self._only is None or name in self._only]
        return OrderedDict(coords, variable=np.array(names))


def _scores(coords: Coords) -> Coords:
    """Coordinates of the scores of fields with these coords."""
    made = OrderedDict((k, v) for k, v in coords.items() if k not in ("lat", "lon"))
    made["variable"] = np.array([name for v in coords["variable"] for name in score_names(str(v))])
    return made


def _valid(coords: Coords) -> np.datetime64:
    return coords["time"][0] + coords["lead_time"][0]  # type: ignore[no-any-return]
