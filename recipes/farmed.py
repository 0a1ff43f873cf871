"""The diagnostics of a config: which run behind which, on which workers."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distinf.coords import Selection, plan, plan_region
from distinf.diagnostics import Chain, Kept, Link, assign, chains, split
from distinf.errors import ConfigError, TaskError
from distinf.inference import DistributedInference
from distinf.options import Output
from distinf.store import ForecastStore, check_clashes, vocabulary
from recipes.models import make

__all__ = ["attributes", "check_stored", "construct", "let_write", "state_plan"]

Coords = OrderedDict[str, np.ndarray]


def construct(
    sections: Mapping[str, Mapping[str, Any]], workers: Sequence[int], kept: Kept, seed: int
) -> list[DistributedInference]:
    """Load all diagnostics on the workers that they belong to.

    Parameters
    ----------
    sections : Mapping[str, Mapping[str, Any]]
        Settings of each diagnostic.
    workers : Sequence[int]
        Ranks of the workers.
    kept : Kept
        What of their results is stored.
    seed : int
        The run's seed.

    Returns
    -------
    list[DistributedInference]
        One for each chain.

    Raises
    ------
    ConfigError
        If a setting cannot work.
    TaskError
        If a model cannot be loaded.
    """
    parted = {name: split(section, f"diagnostic.{name}") for name, section in sections.items()}
    placements = {name: placement for name, (placement, _) in parted.items()}
    linked = {names[0]: names for names in chains(placements)}
    ranks = assign(linked, placements, workers)
    made = []
    for head, names in linked.items():
        links = [
            Link(
                name,
                functools.partial(make, parted[name][1], f"diagnostic.{name}"),
                placements[name].after,
                placements[name].rename,
                placements[name].precision,
                bool(placements[name].compile),
                placements[name].nonfinite,
            )
            for name in names
        ]
        build = functools.partial(Chain, links, kept, seed)
        build.__name__ = "+".join(names)  # type: ignore[attr-defined]  # what errors call it
        try:
            made.append(DistributedInference(build, remote_ranks=ranks[head]))
        except TaskError as error:
            if error.kind == ConfigError.__name__:  # told once, as what it is
                raise ConfigError(error.remote_message) from None
            raise
    return made


def let_write(store: ForecastStore, farmed: Sequence[DistributedInference]) -> None:
    """Let the workers write the results of these chains themselves.

    Raises
    ------
    ConfigError
        If a worker does not reach the store.
    """
    with store.writer_ticket() as ticket:
        for infer, rank in [(each, rank) for each in farmed for rank in each.remote_ranks]:
            try:
                infer.call_func("write_to", ticket, rank, rank=rank)
            except TaskError as error:
                if error.kind == ConfigError.__name__:
                    raise ConfigError(f"rank {error.rank}: {error.remote_message}") from None
                raise


def attributes(
    farmed: Sequence[DistributedInference], variables: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Units and long names: as the models tell them, else from Earth2Studio's vocabulary."""
    told = {name: vocabulary(name) for name in variables}
    for infer in farmed:
        told.update(infer.variable_attributes())
    return told


def state_plan(output: Output, state: Coords) -> Selection | None:
    """Plan what of the prognostic's own state is stored; None if nothing is."""
    if not output.prognostic_variables:
        return None
    wanted = {"variable": np.array(output.prognostic_variables)}
    own = plan(state, wanted, "output.prognostic_variables")
    if output.region is None:
        return own
    region = plan_region(state, output.region, "the prognostic")
    return Selection({**own.indices, **region.indices}, {**own.coords, **region.coords})


def check_stored(output: Output, grids: Mapping[str, Coords]) -> None:
    """Refuse names in ``output.variables`` that nothing makes, and variables made twice."""
    check_clashes(grids)
    stored = {str(v) for grid in grids.values() for v in grid["variable"]}
    unknown = [name for name in output.variables or () if name not in stored]
    if unknown or not grids:
        raise ConfigError(
            f"output.variables={list(output.variables or ())}: no diagnostic makes "
            f"{', '.join(unknown) or 'any of them'}"
        )
