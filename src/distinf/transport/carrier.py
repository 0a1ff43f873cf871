"""How tensors travel: the choice of a carrier, from what is known of all ranks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distinf.errors import ConfigError
from distinf.transport.contract import Peer

__all__ = ["ENDED", "Choice", "conclude", "device_maps", "foresee"]

ENDED = "-"  # outcome of a trial that was only ended because another rank's had failed


@dataclass(frozen=True)
class Choice:
    """How tensors travel, and why.

    Parameters
    ----------
    carrier : str
        ``"cuda"`` or ``"host"``.
    why : str
        In words.
    """

    carrier: str
    why: str


def foresee(wanted: str, peers: Sequence[Peer], on_one_node: bool) -> Choice | None:
    """Choose the carrier where no trial is needed.

    Parameters
    ----------
    wanted : str
        ``runtime.carrier``.
    peers : Sequence[Peer]
        What each rank told of itself.
    on_one_node : bool
        Whether all ranks are on one node.

    Returns
    -------
    Choice | None
        None: it has to be tried.

    Raises
    ------
    ConfigError
        If ``runtime.carrier=cuda`` cannot be.
    """
    if wanted == "host":
        return Choice("host", "runtime.carrier=host")
    without = [peer.rank for peer in peers if not peer.device.startswith("cuda")]
    if without:
        return _refused(wanted, f"{_ranks(without, len(peers))} without a GPU")
    if not on_one_node and wanted == "auto":
        return Choice(
            "host", "the ranks are on several nodes (runtime.carrier=cuda tries between them, too)"
        )
    return None


def conclude(wanted: str, peers: Sequence[Peer], outcomes: Sequence[str]) -> Choice:
    """Choose the carrier from what became of the trial.

    Parameters
    ----------
    wanted, peers
        As in :func:`foresee`.
    outcomes : Sequence[str]
        For each rank, why its trial failed; empty if it did not, `ENDED` if it was only ended
        because another one's failed.

    Returns
    -------
    Choice
        The same on every rank, since all look at the same outcomes.

    Raises
    ------
    ConfigError
        If ``runtime.carrier=cuda`` does not work.
    """
    failed = {
        peer.rank: outcome
        for peer, outcome in zip(peers, outcomes, strict=True)
        if outcome not in ("", ENDED)
    }
    if not failed and ENDED not in outcomes:
        return Choice("cuda", "tried between all ranks")
    told = [f"on rank {rank} {why}" for rank, why in failed.items()] or ["the trial was ended"]
    more = f", and on {len(told) - 1} more" if len(told) > 1 else ""
    why = f"device to device was tried, and {told[0]}{more}"
    if strangers := _strangers(peers):
        why = f"{strangers} see different GPUs ({why})"
    return _refused(wanted, why)


def _refused(wanted: str, why: str) -> Choice:
    if wanted == "cuda":
        raise ConfigError(
            f"runtime.carrier=cuda does not work here: {why}. Use runtime.carrier=host or auto"
        )
    return Choice("host", why)


def _ranks(ranks: Sequence[int], world_size: int) -> str:
    if len(ranks) == world_size:
        return "all ranks are"
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]} are"


def _strangers(peers: Sequence[Peer]) -> str:
    """Rank 0 and the first rank that sees other GPUs than it; empty if none does."""
    first = peers[0]
    for peer in peers[1:]:
        if sorted(peer.visible) != sorted(first.visible):
            return f"ranks {first.rank} and {peer.rank}"
    return ""


def device_maps(rank: int, peers: Sequence[Peer]) -> dict[int, dict[torch.device, torch.device]]:
    """For each peer that this rank talks to, which of its devices takes our device's tensors."""
    mine = torch.device(peers[rank].device)
    others = range(1, len(peers)) if rank == 0 else [0]
    return {other: {mine: torch.device(peers[other].device)} for other in others}
