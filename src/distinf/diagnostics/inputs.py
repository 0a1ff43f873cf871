"""Plans, from coordinates alone, where the variables of a link's input come from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distinf.coords import Coords, Selection, State, plan
from distinf.errors import ConfigError

STATE = ""  # the name of the prognostic's state as a source; other sources are links
_STEP = ("ensemble", "time", "lead_time")


def names_in(coords: Mapping[str, np.ndarray]) -> list[str]:
    """List the names of the variables."""
    return [str(v) for v in coords.get("variable", ())]


@dataclass(frozen=True)
class Inputs:
    """Which variables a link takes from which source, and the coords of its input."""

    pieces: list[tuple[str, Selection]]
    coords: Coords

    def gather(self, made: Mapping[str, State]) -> State:
        """Copy a link's input out of its sources."""
        own = made[self.pieces[0][0]][1]
        given = OrderedDict((k, own[k] if k in _STEP else v) for k, v in self.coords.items())
        cut = [selection(*made[source]) for source, selection in self.pieces]
        if len(cut) == 1:
            return cut[0][0], given
        axis = list(given).index("variable")
        names = [name for _, c in cut for name in names_in(c)]
        order = torch.tensor([names.index(name) for name in names_in(given)])
        joined = torch.cat([x for x, _ in cut], dim=axis)
        return joined.index_select(axis, order.to(joined.device)), given


def plan_inputs(
    name: str, wanted: Coords, sources: Sequence[str], made: Mapping[str, Coords]
) -> Inputs:
    """Plan the input of a link: each variable comes from the first source that has it.

    ``wanted`` is the model's ``input_coords()``; without variables it takes all of the first
    source. ``sources`` are the links before it, the nearest first, and `STATE`; ``made`` has their
    coords. Raises `ConfigError` if no source has a variable, or the sources differ in other
    coordinates.
    """
    where = f"diagnostic.{name}"
    asked = names_in(wanted)
    if not asked:
        cut = plan(made[sources[0]], {**wanted, "variable": np.empty(0)}, where)
        return Inputs([(sources[0], cut)], cut.select_coords(made[sources[0]]))
    taken: dict[str, list[str]] = {}
    missing: list[str] = []
    for variable in asked:
        source = next((s for s in sources if variable in made[s]["variable"]), None)
        if source is None:
            missing.append(variable)
        else:
            taken.setdefault(source, []).append(variable)
    if missing:
        before = f", nor does {' or '.join(sources[:-1])} before it" if sources[1:] else ""
        raise ConfigError(
            f"{where} needs the variables {', '.join(missing)}, which the prognostic "
            f"does not produce{before}; the prognostic produces "
            f"{', '.join(names_in(made[STATE]))}. A diagnostic that makes them "
            f"can come before it: {where}.after=its name"
        )
    pieces = [
        (source, plan(made[source], {**wanted, "variable": np.array(names)}, where))
        for source, names in taken.items()
    ]
    (source, cut), *others = pieces
    coords = cut.select_coords(made[source])
    for other, piece in others:
        second = piece.select_coords(made[other])
        differ = [
            key
            for key in {**coords, **second}
            if key != "variable"
            and not np.array_equal(coords.get(key, np.nan), second.get(key, np.nan))
        ]
        if differ:
            raise ConfigError(
                f"{where} takes variables from {source or 'the state'} and from "
                f"{other or 'the state'}, which differ in {', '.join(differ)}"
            )
    coords["variable"] = np.array(asked)
    return Inputs(pieces, coords)
