"""Every rank waits for all others, learns where they are and whether they want the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distinf.errors import ConfigError, DistinfError, SessionError
from distinf.session.launcher import Place, likely_cause
from distinf.session.network import address_towards
from distinf.versions import versions

__all__ = ["Peer", "end_if_here", "gather", "refuse", "route_to", "shared_gpus"]

_POLL_SECONDS = 0.02
_HEARD_SECONDS = 0.3  # in which all ranks look at the store
_ON_THEIR_WAY_SECONDS = 20.0  # ranks start together, but some import more slowly
_PACKAGES = ("distinf", "torch", "earth2studio", "nvidia-physicsnemo", "numpy")

Peer = dict[str, Any]


def refuse(store: dist.Store, why: str, world_size: int = 1) -> None:
    """Tell the ranks that wait in :func:`gather` that there will be no session.

    Parameters
    ----------
    store : torch.distributed.Store
        Of :func:`distinf.session.rendezvous.meeting`; it ends with this process.
    why : str
        What they are told.
    world_size : int, optional
        How many ranks may still be on their way, by default only those that are here are told.
    """
    others = [f"here/{rank}" for rank in range(1, world_size)]
    deadline = time.monotonic() + _ON_THEIR_WAY_SECONDS
    with contextlib.suppress(RuntimeError):
        store.set("refused", why)
        while others and not store.check(others) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        time.sleep(_HEARD_SECONDS)


def gather(
    store: dist.Store,
    place: Place,
    device: torch.device,
    deadline: float,
    *,
    master: str = "",
    alike: Mapping[str, Any] | None = None,
    died: Callable[[], dict[int, str]] = dict,
) -> list[Peer]:
    """Wait until every rank is here, and learn where each is.

    Parameters
    ----------
    store : torch.distributed.Store
        Of :func:`distinf.session.rendezvous.meeting`.
    place, device : Place, torch.device
        Of this rank.
    deadline : float
        On the monotonic clock.
    master : str, optional
        Where the store is; by default this machine.
    alike : Mapping[str, Any] | None, optional
        What must be the same on every rank that gives it, by default nothing.
    died : Callable[[], dict[int, str]], optional
        Tells which ranks' processes are known to have ended, and how.

    Returns
    -------
    list[Peer]
        Host, process, device and visible GPUs of each rank.

    Raises
    ------
    SessionError
        Names the ranks that did not arrive, and why if that is known; or a rank that belongs
        to another job.
    ConfigError
        Names the rank that wants something else, and what.
    """
    try:
        peers = _wait_for_all(
            store, place, _introduce(place, device, master, alike), deadline, died
        )
        _check_alike(peers)
    except DistinfError as error:
        if place.rank == 0:
            refuse(store, str(error))
        raise
    except RuntimeError as error:
        raise SessionError(
            f"rank {place.rank} on {socket.gethostname()} lost the rendezvous: rank 0 has ended, "
            f"and says why ({str(error).splitlines()[0]})"
        ) from error
    return peers


def _introduce(
    place: Place, device: torch.device, master: str, alike: Mapping[str, Any] | None
) -> Peer:
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    visible = [str(torch.cuda.get_device_properties(i).uuid) for i in gpus]
    return {
        "rank": place.rank,
        "host": socket.gethostname(),
        "node": _node(),
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "device": str(device),
        "visible": visible,
        "gpu": visible[device.index] if visible else "",
        "address": address_towards(master) if master else "",
        "job": place.job,
        "world_size": place.world_size,
        "versions": {**dict.fromkeys(_PACKAGES, "none"), **versions(_PACKAGES)},
        "alike": None if alike is None else json.loads(json.dumps(alike, default=str)),
    }


def started(pid: int) -> int | None:
    """When a process of this machine began, in ticks since its boot; None if there is none."""
    try:
        # The second field, the command, is in brackets and may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def end_if_here(peer: Peer) -> None:
    """Kill a rank's process if it is on this machine: one that is stopped does not end by itself.

    Its launcher would wait for it.
    """
    here = peer["host"] == socket.gethostname() and peer["started"] is not None
    if here and started(peer["pid"]) == peer["started"]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(peer["pid"], signal.SIGKILL)


def _node() -> str:
    """Name of this node as the launcher knows it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _wait_for_all(
    store: dist.Store,
    place: Place,
    me: Peer,
    deadline: float,
    died: Callable[[], dict[int, str]],
) -> list[Peer]:
    began = time.monotonic()
    mine = json.dumps(me)
    there = store.compare_set(f"here/{place.rank}", "", mine).decode()
    if there != mine:
        other = json.loads(there)
        raise SessionError(
            f"two processes are rank {place.rank}: {other['pid']} on {other['host']} and "
            f"{me['pid']} on {me['host']}. Two jobs see each other: give each a MASTER_PORT of "
            "its own, or leave MASTER_ADDR and MASTER_PORT unset"
        )
    ranks = range(place.world_size)
    absent = list(ranks)
    while absent := [rank for rank in absent if not store.check([f"here/{rank}"])]:
        if store.check(["refused"]):
            why = store.get("refused").decode()
            raise SessionError(f"the driver (rank 0) refused the run: {why}")
        for rank, how in died().items():
            raise SessionError(f"rank {rank} did not start: {how}")
        if time.monotonic() > deadline:
            heard = {
                json.loads(store.get(f"here/{rank}"))["node"]
                for rank in ranks
                if rank not in absent
            }
            raise SessionError(
                f"rank {place.rank} on {me['host']} waited {time.monotonic() - began:.0f} s "
                f"(runtime.start_timeout) for rank(s) {absent} of {place.world_size}, "
                f"which never arrived{_silent(place, heard)}. {likely_cause(place)}"
            )
        time.sleep(_POLL_SECONDS)
    return [json.loads(store.get(f"here/{rank}")) for rank in ranks]


def _silent(place: Place, heard: set[str]) -> str:
    """Nodes from which nobody came, where their names are known."""
    if place.launcher != "slurm":
        return ""
    silent = [host for host in place.hosts if host not in heard]
    return f"; nothing came from node(s) {', '.join(silent)}" if silent else ""


def _check_alike(peers: list[Peer]) -> None:
    """Compare every rank with the driver."""
    first = peers[0]
    for peer in peers[1:]:
        who = f"rank {peer['rank']} on {peer['host']}"
        for key, word in (("job", "launch"), ("world_size", "world size")):
            if peer[key] != first[key]:
                raise SessionError(
                    f"{who} belongs to another job: its {word} is {peer[key] or 'unknown'}, that "
                    f"of rank 0 on {first['host']} is {first[key] or 'unknown'}"
                )
        for kind, what in (("versions", "version of "), ("alike", "")):
            ours, theirs = first[kind], peer[kind]
            if ours is None or theirs is None:
                continue
            for key in sorted({*ours, *theirs}):
                if ours.get(key) != theirs.get(key):
                    raise ConfigError(
                        f"the ranks disagree: {what}{key} is {theirs.get(key)} on {who}, but "
                        f"{ours.get(key)} on rank 0 on {first['host']}"
                    )


def route_to(peers: list[Peer], rank: int) -> str:
    """Address of a peer elsewhere, so that this rank listens where that one can reach it."""
    others = [peer for peer in peers if peer["rank"] != rank and peer["address"]]
    far = [peer for peer in others if peer["host"] != peers[rank]["host"]]
    return str((far or others)[0]["address"]) if others else ""


def shared_gpus(peers: list[Peer]) -> str:
    """Say which ranks compute on one GPU, with words of advice; empty if none do."""
    on: dict[tuple[str, str], list[int]] = {}
    for peer in peers:
        if peer["gpu"]:
            on.setdefault((peer["node"], peer["gpu"]), []).append(peer["rank"])
    shared = [ranks for ranks in on.values() if len(ranks) > 1]
    if not shared:
        return ""
    listed = "; ".join(", ".join(map(str, ranks)) for ranks in shared)
    return (
        f"more ranks than GPUs: these ranks share one GPU each: {listed}. They take turns on it "
        "and share its memory; start as many ranks as there are GPUs for the full speed of each"
    )
