"""Where and how each diagnostic runs: behind which other one, on which workers, how precisely.

Pure, and without torch, so that a wrong chain is answered at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from distinf.errors import ConfigError
from distinf.options import Count, from_mapping, option_names, options_dataclass

__all__ = ["Placement", "assign", "chains", "split"]


_Names = Annotated[Mapping[str, str], Field(description="must be like {tp: tp_afno}")]


@options_dataclass("diagnostic")
class Placement:
    """What a diagnostic's settings say beside its model's own.

    Parameters
    ----------
    workers : int | None
        Workers of its own, by default None: it shares those that belong to no other.
    after : str | None
        Name of the diagnostic behind which it runs, on the same worker, taking from its result
        the variables that it has; by default None.
    rename : Mapping[str, str]
        New names of its variables in the store.
    precision : str | None
        ``"float16"`` or ``"bfloat16"``: what autocast lowers to it is computed in it; by default
        None: in the model's own precision.
    compile : bool | None
        Whether its networks are compiled by ``torch.compile``, by default None: they are not.
    nonfinite : str | None
        What NaN or an infinite value in its result is: ``"allow"``, ``"warn"`` or ``"fail"``; by
        default None: what ``runtime.nonfinite`` says.

    Raises
    ------
    ConfigError
        If a value cannot be.
    """

    workers: Count | None = None
    after: Annotated[str, Field(description="name one diagnostic")] | None = None
    rename: _Names = field(default_factory=dict)
    precision: Literal["float16", "bfloat16"] | None = None
    compile: bool | None = None
    nonfinite: Literal["allow", "warn", "fail"] | None = None


def split(settings: Mapping[str, Any], where: str) -> tuple[Placement, dict[str, Any]]:
    """Tell a diagnostic's placement from its model's settings.

    Parameters
    ----------
    settings : Mapping[str, Any]
        Its section of the config.
    where : str
        The section, for errors.

    Returns
    -------
    tuple[Placement, dict[str, Any]]
        Its placement, and what remains.
    """
    names = option_names(Placement)
    own = {key: value for key, value in settings.items() if key in names and value is not None}
    rest = {key: value for key, value in settings.items() if key not in names}
    return from_mapping(Placement, own, where), rest


def chains(placements: Mapping[str, Placement]) -> list[list[str]]:
    """Group diagnostics that run behind one another, each behind what it needs.

    Parameters
    ----------
    placements : Mapping[str, Placement]
        Of each diagnostic, by name.

    Returns
    -------
    list[list[str]]
        Names; one list for all that hang together, first the one that runs first.

    Raises
    ------
    ConfigError
        If a link is missing, a chain bites its tail, or a later link asks for workers.
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
                f"diagnostic.{name}.workers={placement.workers}: it runs on the workers of "
                f"{path[-1]}, behind which it comes; set diagnostic.{path[-1]}.workers"
            )
        group = groups.setdefault(path[-1], [])
        group += [link for link in reversed(path) if link not in group]
    return list(groups.values())


def assign(
    heads: Iterable[str], placements: Mapping[str, Placement], workers: Sequence[int]
) -> dict[str, list[int] | None]:
    """Give workers of their own to the chains that ask for some, from the last rank on.

    Parameters
    ----------
    heads : Iterable[str]
        The first diagnostic of each chain.
    placements : Mapping[str, Placement]
        Of each diagnostic, by name.
    workers : Sequence[int]
        Ranks, ascending. A process alone shares itself.

    Returns
    -------
    dict[str, list[int] | None]
        For each head its ranks; None: every worker.

    Raises
    ------
    ConfigError
        If there are too few.
    """
    heads = list(heads)
    asked = {head: n for head in heads if (n := placements[head].workers) is not None}
    if not asked or 0 in workers:
        return dict.fromkeys(heads)
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
