"""Diagnostics that run one after the other on a worker; most often only one.

Each takes its variables from the result of the diagnostic before it, else from the prognostic's
state. Only what is stored is sent back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from distinf.coords import Coords, Selection, State, plan_key, plan_subset
from distinf.diagnostics.inputs import STATE, Inputs, names_in, plan_inputs
from distinf.errors import ConfigError
from distinf.seeds import seed_of, seeded
from distinf.store import RemoteWriter
from distinf.tensors import Rule, Watched
from distinf.transport import Later, forward_of


@dataclass(frozen=True)
class Link:
    """One diagnostic of a chain: its name, an importable factory of its model, its placement."""

    name: str
    factory: Callable[[], Any]
    after: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    precision: str | None = None
    compiled: bool = False
    nonfinite: str | None = None
    whole: bool = False  # all of its result is stored, whatever the subset


@dataclass(frozen=True)
class StoredSubset:
    """The variables (names in the store) and the region that are stored; None: all."""

    variables: Sequence[str] | None = None
    region: Mapping[str, Sequence[float]] | None = None

    def plan(self, coords: Coords, who: str, rename: Mapping[str, str]) -> Selection | None:
        """Plan how to select it from a result with these coords; None: nothing is stored."""
        names = [str(v) for v in coords["variable"]]
        if self.variables is not None:
            names = [v for v in names if rename.get(v, v) in self.variables]
        return plan_subset(coords, names, self.region, who) if names else None


class Chain:
    """A chain of diagnostics as one model.

    ``links`` are in the order of their calls. ``subset`` is what is stored of their results, by
    default everything; ``seed`` is the run's.
    """

    def __init__(
        self, links: Sequence[Link], subset: StoredSubset | None = None, seed: int = 0
    ) -> None:
        self._links = {link.name: link for link in links}
        self._subset = subset or StoredSubset()
        self._seed = seed
        self._device = torch.device("cpu")
        self._models = {link.name: link.factory() for link in links}
        self._running = "+".join(self._models)
        self._writer: RemoteWriter | None = None
        self._inputs: dict[tuple[object, ...], Inputs] = {}
        self._cuts: dict[tuple[object, ...], Selection | None] = {}
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
        """Move every model to a device and prepare it for inference."""
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
        """Return what it needs from a state: the variables that no earlier link produces."""
        wanted = [model.input_coords() for model in self._models.values()]
        if len(wanted) == 1:
            return OrderedDict(wanted[0])
        variables: list[str] = []
        from_state: list[Coords] = []
        everything = False
        for name, coords in zip(self._models, wanted, strict=True):
            made = {v for other in self._before(name) for v in self._variables_of(other)}
            asked = names_in(coords)
            everything = everything or (not asked and self._links[name].after is None)
            rest = [v for v in asked if v not in made]
            variables += [v for v in rest if v not in variables]
            if rest:
                from_state.append(coords)
        union: Coords = OrderedDict(from_state[0] if from_state else wanted[0])
        for key, values in union.items():
            if not all(np.array_equal(values, other.get(key, np.nan)) for other in from_state):
                union[key] = np.empty(0)  # each link selects for itself
        union["variable"] = np.empty(0) if everything else np.array(variables)
        return union

    def output_coords(self, coords: Coords) -> dict[str, Coords]:
        """Coordinates of what is stored of each link's result, for a state with these coords.

        Raises `ConfigError` if a link lacks variables.
        """
        made: dict[str, Coords] = {STATE: coords}
        stored: dict[str, Coords] = {}
        for name, model in self._models.items():
            made[name] = model.output_coords(self._plan(name, made).coords)
            cut = self._cut(name, made[name])
            if cut is not None:
                stored[name] = self._renamed(name, cut.select_coords(made[name]))
        return stored

    def variable_attributes(self) -> dict[str, dict[str, str]]:
        """``units`` and ``long_name`` of variables in the store, where the models have them."""
        found: dict[str, dict[str, str]] = {}
        for name, model in self._models.items():
            if callable(getattr(model, "variable_attributes", None)):
                new = self._links[name].rename
                found.update({new.get(v, v): a for v, a in model.variable_attributes().items()})
        return found

    def write_to(self, *store: Any) -> None:
        """From now on, write results into a store; the arguments are those of `RemoteWriter`."""
        self._writer = RemoteWriter(*store)

    @property
    def read_ahead(self) -> Callable[[torch.Tensor, Coords], State] | None:
        """What lets models read for a state, and returns the arguments of :meth:`forward`.

        The worker calls it while another call computes. None if no model reads.
        """
        readers = [model for model in self._models.values() if hasattr(model, "read_ahead")]

        def read(x: torch.Tensor, coords: Coords) -> State:
            for model in readers:
                model.read_ahead(coords)
            return x, coords

        return read if readers else None

    def forward(self, x: torch.Tensor, coords: Coords) -> dict[str, State] | Watched | Later:
        """Run the links on a state [(ensemble=1,) time=1, lead_time=1, variable, ...].

        Returns what is stored of each link's result. After :meth:`write_to` this is written here
        instead, and what was written is returned.
        """
        made: dict[str, State] = {STATE: (x, coords)}
        stored: dict[str, State] = {}
        for name, model in self._models.items():
            self._running = name
            if len(self._models) == 1:
                inputs = x, coords
            else:
                inputs = self._plan(name, {key: c for key, (_, c) in made.items()}).gather(made)
            lowered = lower_precision(self._links[name].precision, self._device)
            with seeded(seed_of(self._seed, name, coords), self._device), lowered:
                y, y_coords = forward_of(model)(*inputs)
            if self._links[name].precision is not None:
                y = y.to(x.dtype)
            made[name] = y, y_coords
            cut = self._cut(name, y_coords)
            if cut is not None:
                if cut.indices:
                    y, y_coords = cut(y, y_coords)
                stored[name] = y, self._renamed(name, y_coords)
        result = Watched(stored, self._rules) if self._rules else stored
        return result if self._writer is None else Later(result, self._writer.write)

    def _before(self, name: str) -> list[str]:
        """Links before a link, the nearest first."""
        found: list[str] = []
        after = self._links[name].after
        while after is not None:
            found.append(after)
            after = self._links[after].after
        return found

    def _variables_of(self, name: str) -> list[str]:
        """Variables that a link produces, as far as they are known without its input."""
        wanted = self._models[name].input_coords()
        if not names_in(wanted):
            return []  # its result has the variables of its input
        return names_in(self._models[name].output_coords(wanted))

    def _plan(self, name: str, made: Mapping[str, Coords]) -> Inputs:
        key = (name, *map(plan_key, made.values()))
        if key not in self._inputs:
            wanted = self._models[name].input_coords()
            self._inputs[key] = plan_inputs(name, wanted, [*self._before(name), STATE], made)
        return self._inputs[key]

    def _cut(self, name: str, coords: Coords) -> Selection | None:
        key = (name, plan_key(coords))
        if key not in self._cuts:
            link = self._links[name]
            subset = StoredSubset() if link.whole else self._subset
            self._cuts[key] = subset.plan(coords, f"diagnostic.{name}", link.rename)
        return self._cuts[key]

    def _renamed(self, name: str, coords: Coords) -> Coords:
        new = self._links[name].rename
        return OrderedDict(coords, variable=np.array([new.get(v, v) for v in names_in(coords)]))


def lower_precision(precision: str | None, device: torch.device) -> AbstractContextManager[Any]:
    """Use autocast with this precision; None: do not."""
    if precision is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def compile_networks(model: Any, who: str) -> None:
    """Compile the networks of a model, its submodules; raise `ConfigError` if it has none.

    The model itself handles coordinates and is not compiled.
    """
    networks = list(model.children()) if isinstance(model, torch.nn.Module) else []
    networks = [network for network in networks if any(True for _ in network.parameters())]
    if not networks:
        raise ConfigError(
            f"{who}.compile=true: {type(model).__name__} has no network to compile; leave it null"
        )
    for network in networks:
        network.compile()
