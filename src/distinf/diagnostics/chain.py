"""Diagnostics that run one behind the other on a worker; most often just one.

Each takes its variables from the result of the one it comes behind where that has them, else from
the prognostic's state. Results are cut down to what is stored before they travel back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from distinf.coords import Selection, plan, plan_key, plan_region, rename_variables
from distinf.diagnostics.reduced import compile_networks, lower_precision
from distinf.errors import ConfigError
from distinf.seeds import seed_of, seeded
from distinf.store import RemoteWriter
from distinf.tensors import Rule, Watched
from distinf.transport import Later, forward_of

__all__ = ["Chain", "Kept", "Link"]

Coords = OrderedDict[str, np.ndarray]
Fields = tuple[torch.Tensor, Coords]
_STATE = ""  # where variables come from that no link makes


@dataclass(frozen=True)
class Link:
    """One diagnostic of a chain.

    Parameters
    ----------
    name : str
        Its name in the config.
    factory : Callable[[], Any]
        Makes the model; importable.
    after : str | None
        Name of the link that it comes behind.
    rename : Mapping[str, str]
        New names of its variables, for the store.
    precision : str | None, optional
        ``"float16"`` or ``"bfloat16"``: mixed precision, by default None: the model's own.
    compiled : bool, optional
        Whether its networks are compiled, by default False.
    nonfinite : str | None, optional
        What NaN or an infinite value in its result is, as `distinf.tensors.Rule`, by default
        None: what the session says.
    """

    name: str
    factory: Callable[[], Any]
    after: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    precision: str | None = None
    compiled: bool = False
    nonfinite: str | None = None


@dataclass(frozen=True)
class Kept:
    """What of a result is stored.

    Parameters
    ----------
    variables : Sequence[str] | None
        Names in the store, by default None: all.
    region : Mapping[str, Sequence[float]] | None
        As `distinf.coords.plan_region`, by default None: all.
    """

    variables: Sequence[str] | None = None
    region: Mapping[str, Sequence[float]] | None = None

    def plan(self, coords: Coords, who: str, rename: Mapping[str, str]) -> Selection | None:
        """Plan the cut of a result with these coords; None if nothing of it is stored."""
        names = [str(v) for v in coords["variable"]]
        stored = [rename.get(v, v) for v in names]
        wanted = [
            v
            for v, new in zip(names, stored, strict=True)
            if self.variables is None or new in self.variables
        ]
        if not wanted:
            return None
        cut = plan(coords, {"variable": np.array(wanted)}, who)
        if self.region is not None:
            region = plan_region(coords, self.region, who)
            cut = Selection({**cut.indices, **region.indices}, {**cut.coords, **region.coords})
        return cut


class Chain:
    """A chain of diagnostics as one model.

    Parameters
    ----------
    links : Sequence[Link]
        In the order in which they run.
    kept : Kept, optional
        What of their results is stored, by default everything.
    seed : int, optional
        The run's seed, by default 0; see `distinf.seeds.task_seed`.
    """

    def __init__(self, links: Sequence[Link], kept: Kept | None = None, seed: int = 0) -> None:
        self._links = {link.name: link for link in links}
        self._kept = kept or Kept()
        self._seed = seed
        self._device = torch.device("cpu")
        self._models = {link.name: link.factory() for link in links}
        self._running = "+".join(self._models)
        self._writer: RemoteWriter | None = None
        self._plans: dict[Any, Any] = {}
        self._rules = {
            link.name: Rule(link.nonfinite, f"diagnostic.{link.name}.nonfinite")
            for link in links
            if link.nonfinite is not None
        }

    @property
    def label(self) -> str:
        """Class of the model that runs, for errors."""
        model = self._models.get(self._running)
        return type(model).__name__ if model is not None else self._running

    def to(self, device: torch.device) -> Chain:
        """Move every model to a device and make it ready for inference."""
        self._device = torch.device(device)
        for name, model in self._models.items():
            if isinstance(model, torch.nn.Module):
                model.eval()
            if callable(getattr(model, "to", None)):
                self._models[name] = model.to(device)
            if self._links[name].compiled:
                compile_networks(self._models[name], f"diagnostic.{name}")
        return self

    def input_coords(self) -> Coords:
        """Tell what it needs of a state: each link's variables, less what earlier links make."""
        wanted = [self._models[name].input_coords() for name in self._models]
        if len(wanted) == 1:
            return OrderedDict(wanted[0])
        variables: list[str] = []
        from_state: list[Coords] = []
        everything = False
        for name, coords in zip(self._models, wanted, strict=True):
            made = {v for other in self._before(name) for v in self._made(other)}
            asked = _asked(self._models[name])
            everything = everything or (not asked and self._links[name].after is None)
            rest = [v for v in asked if v not in made]
            variables += [v for v in rest if v not in variables]
            if rest:
                from_state.append(coords)
        union: Coords = OrderedDict(from_state[0] if from_state else wanted[0])
        for key, values in union.items():
            if not all(np.array_equal(values, other.get(key, np.nan)) for other in from_state):
                union[key] = np.empty(0)  # each link cuts its own
        union["variable"] = np.empty(0) if everything else np.array(variables)
        return union

    def output_coords(self, coords: Coords) -> dict[str, Coords]:
        """Coordinates of what is stored of each link's result, for a state with these coords.

        Raises
        ------
        ConfigError
            If a link lacks variables.
        """
        made: dict[str, Coords] = {_STATE: coords}
        kept: dict[str, Coords] = {}
        for name, model in self._models.items():
            made[name] = model.output_coords(self._inputs(name, made)[1])
            cut = self._cut(name, made[name])
            if cut is not None:
                kept[name] = self._stored(name, cut.select_coords(made[name]))
        return kept

    def variable_attributes(self) -> dict[str, dict[str, str]]:
        """``units`` and ``long_name`` of variables in the store, where the models tell them."""
        told: dict[str, dict[str, str]] = {}
        for name, model in self._models.items():
            if callable(getattr(model, "variable_attributes", None)):
                new = self._links[name].rename
                told.update({new.get(v, v): a for v, a in model.variable_attributes().items()})
        return told

    def write_to(self, *store: Any) -> None:
        """Write results into a store from here on; arguments as of `RemoteWriter`."""
        self._writer = RemoteWriter(*store)

    def forward(self, x: torch.Tensor, coords: Coords) -> dict[str, Fields] | Watched | Later:
        """Run the links on a state [(ensemble=1,) time=1, lead_time=1, variable, ...].

        Returns
        -------
        dict[str, tuple[torch.Tensor, Coords]] | Watched | Later
            For each link of which something is stored, that; after :meth:`write_to` it is written
            here, and where it lies is returned.
        """
        made: dict[str, Fields] = {_STATE: (x, coords)}
        kept: dict[str, Fields] = {}
        for name, model in self._models.items():
            self._running = name
            inputs = (x, coords) if len(self._models) == 1 else self._gather(name, made)
            lowered = lower_precision(self._links[name].precision, self._device)
            with seeded(seed_of(self._seed, name, coords), self._device), lowered:
                y, y_coords = forward_of(model)(*inputs)
            made[name] = (y if self._links[name].precision is None else y.to(x.dtype)), y_coords
            y, y_coords = made[name]
            cut = self._cut(name, y_coords)
            if cut is not None:
                y, y_coords = cut(y, y_coords) if cut.indices else (y, y_coords)
                kept[name] = y, self._stored(name, y_coords)
        made_here = Watched(kept, self._rules) if self._rules else kept
        return made_here if self._writer is None else Later(made_here, self._writer.write)

    def _before(self, name: str) -> list[str]:
        """Links that a link comes behind, the nearest first."""
        found: list[str] = []
        after = self._links[name].after
        while after is not None:
            found.append(after)
            after = self._links[after].after
        return found

    def _made(self, name: str) -> list[str]:
        model = self._models[name]
        if not _asked(model):
            return []  # it makes what it is given
        return [str(v) for v in model.output_coords(model.input_coords())["variable"]]

    def _inputs(
        self, name: str, made: Mapping[str, Coords]
    ) -> tuple[list[tuple[str, Selection]], Coords]:
        """Which variables a link takes from where, and the coords of what it is given."""
        where = f"diagnostic.{name}"
        wanted = self._models[name].input_coords()
        asked = _asked(self._models[name])
        sources = [*self._before(name), _STATE]
        if not asked:  # it takes what it is given
            source = sources[0]
            cut = plan(made[source], {**wanted, "variable": np.empty(0)}, where)
            return [(source, cut)], cut.select_coords(made[source])
        taken: dict[str, list[str]] = {}
        missing: list[str] = []
        for variable in asked:
            having = [s for s in sources if variable in made[s]["variable"]]
            if not having:
                missing.append(variable)
            else:
                taken.setdefault(having[0], []).append(variable)
        if missing:
            behind = f" nor does {' or '.join(sources[:-1])}, behind which it comes" * (
                len(sources) > 1
            )
            raise ConfigError(
                f"diagnostic.{name} needs the variables {', '.join(missing)}, which the prognostic "
                f"does not produce{behind}; the prognostic produces "
                f"{', '.join(map(str, made[_STATE]['variable']))}. A diagnostic that makes them "
                f"can come before it: diagnostic.{name}.after=its name"
            )
        pieces = [
            (source, plan(made[source], {**wanted, "variable": np.array(names)}, where))
            for source, names in taken.items()
        ]
        source, cut = pieces[0]
        coords = cut.select_coords(made[source])
        for other, piece in pieces[1:]:
            there = piece.select_coords(made[other])
            differ = [
                key
                for key in {**coords, **there}
                if key != "variable"
                and not np.array_equal(coords.get(key, np.nan), there.get(key, np.nan))
            ]
            if differ:
                raise ConfigError(
                    f"{where} takes variables from {source or 'the state'} and from "
                    f"{other or 'the state'}, which differ in {', '.join(differ)}"
                )
        coords["variable"] = np.array(asked)
        return pieces, coords

    def _gather(self, name: str, made: Mapping[str, Fields]) -> Fields:
        """Put together what a link is given, in memory that nothing else uses."""
        coords = {source: c for source, (_, c) in made.items()}
        key = (name, *(plan_key(c) for c in coords.values()))
        if key not in self._plans:
            self._plans[key] = self._inputs(name, coords)
        pieces, given = self._plans[key]
        own = coords[pieces[0][0]]
        given = OrderedDict((k, own[k] if k in _STEP else v) for k, v in given.items())
        cut = [selection(*made[source]) for source, selection in pieces]
        if len(cut) == 1:
            return cut[0][0], given
        axis = list(given).index("variable")
        names = [str(v) for _, c in cut for v in c["variable"]]
        order = torch.tensor([names.index(str(v)) for v in given["variable"]])
        joined = torch.cat([x for x, _ in cut], dim=axis)
        return joined.index_select(axis, order.to(joined.device)), given

    def _cut(self, name: str, coords: Coords) -> Selection | None:
        key = ("kept", name, plan_key(coords))
        if key not in self._plans:
            self._plans[key] = self._kept.plan(
                coords, f"diagnostic.{name}", self._links[name].rename
            )
        cut: Selection | None = self._plans[key]
        return cut

    def _stored(self, name: str, coords: Coords) -> Coords:
        return rename_variables(coords, self._links[name].rename)


_STEP = ("ensemble", "time", "lead_time")


def _asked(model: Any) -> list[str]:
    """Return the variables that a model asks for; none if it takes what it is given."""
    return [str(v) for v in model.input_coords().get("variable", ())]
