"""Where and how each diagnostic runs: after which other one, on which workers, how precisely.

Imports no torch, so that a wrong chain ends in a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from distinf.errors import ConfigError
from distinf.typed_options import Count, from_mapping, option_names, options_dataclass

_Names = Annotated[Mapping[str, str], Field(description="must be like {tp: tp_afno}")]


@options_dataclass("diagnostic")
class Placement:
    """The keys of a diagnostic that are not its model's; see ``cfg/placement/default.yaml``."""

    workers: Count | None = None
    ranks: Count = 1
    after: Annotated[str, Field(description="name one diagnostic")] | None = None
    rename: _Names = field(default_factory=dict)
    precision: Literal["float16", "bfloat16"] | None = None
    compile: bool | None = None
    nonfinite: Literal["allow", "warn", "fail"] | None = None


def split(settings: Mapping[str, Any], where: str) -> tuple[Placement, dict[str, Any]]:
    """Separate the section ``where`` of a config into a placement and its model's settings.

    Raises `ConfigError` if a value of the placement is wrong.
    """
    names = option_names(Placement)
    own = {key: value for key, value in settings.items() if key in names and value is not None}
    rest = {key: value for key, value in settings.items() if key not in names}
    return from_mapping(Placement, own, where), rest


def chains(placements: Mapping[str, Placement]) -> list[list[str]]:
    """Group the names of diagnostics into chains, each in the order of its calls.

    Raises `ConfigError` if a link is missing, a chain is circular, or a link after the first asks
    for workers.
    """
    groups: dict[str, list[str]] = {}
    for name, placement in placements.items():
        path = [name]
        while (before := placements[path[-1]].after) is not None:
            if before not in placements:
                raise ConfigError(
                    f"diagnostic.{path[-1]}.after={before}: there is no diagnostic {before} in "
                    f"this run; it has {', '.join(placements)}"
                )
            if before in path:
                raise ConfigError(
                    f"diagnostic.{path[-1]}.after={before}: they would wait for each other: "
                    f"{' after '.join([*path, before])}"
                )
            path.append(before)
        if placement.after is not None and placement.workers is not None:
            raise ConfigError(
                f"diagnostic.{name}.workers={placement.workers}: it runs after "
                f"{path[-1]}, on the same workers; set diagnostic.{path[-1]}.workers"
            )
        group = groups.setdefault(path[-1], [])
        group += [link for link in reversed(path) if link not in group]
    return list(groups.values())


def assign(
    heads: Iterable[str], placements: Mapping[str, Placement], workers: Sequence[int]
) -> dict[str, list[int] | None]:
    """Assign ranks to chains; a chain that asks for workers gets its own, from the last rank on.

    ``heads`` are the first diagnostics of the chains, ``workers`` the ranks, ascending; rank 0 is
    among them in a run of one process. Returns for each head its ranks (None: every worker).
    Raises `ConfigError` if there are too few.
    """
    heads = list(heads)
    asked = {head: n for head in heads if (n := placements[head].workers) is not None}
    if not asked or list(workers) == [0]:
        return dict.fromkeys(heads)
    if 0 in workers:
        head = next(iter(asked))
        raise ConfigError(
            f"diagnostic.{head}.workers={asked[head]}: with as many drivers as ranks each rank "
            "runs all diagnostics of its states; leave it out, or choose fewer runtime.drivers"
        )
    sharing = [head for head in heads if head not in asked]
    needed = sum(asked.values()) + bool(sharing)
    if needed > len(workers):
        shared = f", and {', '.join(sharing)} need at least one" if sharing else ""
        listed = " ".join(f"diagnostic.{head}.workers={n}" for head, n in asked.items())
        raise ConfigError(
            f"{listed}: that is {sum(asked.values())} of {len(workers)} worker(s){shared}; start "
            f"{needed + 1} ranks, or ask for fewer"
        )
    left = list(workers)
    given: dict[str, list[int] | None] = {}
    for head, n in asked.items():
        left, given[head] = left[:-n], left[-n:]
    given.update(dict.fromkeys(sharing, left))
    return given
