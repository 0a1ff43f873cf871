"""Every rank waits for all others, reads where they run, and checks that they belong together."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
import torch.distributed as dist

from distinf.errors import ConfigError, DistinfError, SessionError
from distinf.session.launcher import RankInfo, late
from distinf.session.network import address_towards
from distinf.transport import Peer
from distinf.versions import versions

_POLL_SECONDS = 0.02
_READ_SECONDS = 0.3  # in which all ranks read the store
_START_SECONDS = 20.0  # ranks start together, but some import more slowly
_SAME_PROCESS_SECONDS = 2.0  # creation times are rounded, and follow the system's clock
_PACKAGES = ("distinf", "torch", "earth2studio", "nvidia-physicsnemo", "numpy")


@dataclass(frozen=True)
class _Introduction:
    """What a rank writes into the store; ``settings`` is None where it has none to compare."""

    peer: Peer
    job: str
    world_size: int
    versions: dict[str, str]
    settings: dict[str, Any] | None

    @classmethod
    def of(cls, text: bytes | str) -> _Introduction:
        given = json.loads(text)
        peer = given.pop("peer")
        return cls(peer=Peer(**{**peer, "visible": tuple(peer["visible"])}), **given)


def refuse(store: dist.Store, why: str, world_size: int = 1) -> None:
    """Tell the ranks that wait in :func:`gather` why there is no session.

    The store ends with this process, so this waits until the ranks below ``world_size`` have
    arrived; by default it waits for none.
    """
    others = [f"here/{rank}" for rank in range(1, world_size)]
    deadline = time.monotonic() + _START_SECONDS
    with contextlib.suppress(RuntimeError):
        store.set("refused", why)
        while others and not store.check(others) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        time.sleep(_READ_SECONDS)


def gather(
    store: dist.Store,
    info: RankInfo,
    device: torch.device,
    deadline: float,
    *,
    master: str = "",
    must_match: Mapping[str, Any] | None = None,
    ended: Callable[[], dict[int, str]] = dict,
) -> list[Peer]:
    """Wait for all ranks and check that they belong together; return where each of them runs.

    ``master`` is the host of the store; empty: this machine. ``must_match`` is compared between the
    ranks that have any. ``ended`` returns the ranks whose processes are known to have ended, and
    how. ``deadline`` is on the monotonic clock. The `SessionError` names the ranks that did not
    arrive, and why if that is known, or a rank of another job; the `ConfigError` names the rank
    whose settings or versions differ, and in what.
    """
    try:
        mine = _introduction(info, device, master, must_match)
        _enter(store, mine)
        found = _wait_for_all(store, info, deadline, ended)
        _check_same_run(found)
    except (DistinfError, KeyboardInterrupt) as error:
        if info.rank == 0:
            refuse(store, str(error) or "interrupted")
        raise
    except RuntimeError as error:
        raise SessionError(
            f"rank {info.rank} on {socket.gethostname()} lost the rendezvous: rank 0 has ended, "
            f"and says why ({str(error).splitlines()[0]})"
        ) from error
    return [each.peer for each in found]


def _introduction(
    info: RankInfo, device: torch.device, master: str, must_match: Mapping[str, Any] | None
) -> _Introduction:
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    host = socket.gethostname()
    return _Introduction(
        peer=Peer(
            rank=info.rank,
            device=str(device),
            visible=tuple(str(torch.cuda.get_device_properties(i).uuid) for i in gpus),
            host=host,
            node=os.environ.get("SLURMD_NODENAME") or host,
            pid=os.getpid(),
            created=psutil.Process().create_time(),
            address=address_towards(master) if master else "",
        ),
        job=info.job,
        world_size=info.world_size,
        versions={**dict.fromkeys(_PACKAGES, "none"), **versions(_PACKAGES)},
        # As JSON gives it back, which the other ranks read.
        settings=must_match if must_match is None else json.loads(_json(must_match)),
    )


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _enter(store: dist.Store, mine: _Introduction) -> None:
    """Write this rank's introduction, unless another process has this rank."""
    text, me = _json(asdict(mine)), mine.peer
    written = store.compare_set(f"here/{me.rank}", "", text).decode()
    if written != text:
        other = _Introduction.of(written).peer
        raise SessionError(
            f"two processes are rank {me.rank}: {other.pid} on {other.host} and "
            f"{me.pid} on {me.host}. Two jobs see each other: give each a MASTER_PORT of "
            "its own, or leave MASTER_ADDR and MASTER_PORT unset"
        )


def _wait_for_all(
    store: dist.Store, info: RankInfo, deadline: float, ended: Callable[[], dict[int, str]]
) -> list[_Introduction]:
    began = time.monotonic()
    ranks = range(info.world_size)
    absent = list(ranks)
    while absent := [rank for rank in absent if not store.check([f"here/{rank}"])]:
        if store.check(["refused"]):
            why = store.get("refused").decode()
            raise SessionError(f"the driver (rank 0) refused the run: {why}")
        for rank, how in ended().items():
            raise SessionError(f"rank {rank} did not start: {how}")
        if time.monotonic() > deadline:
            present = [rank for rank in ranks if rank not in absent]
            nodes = {_Introduction.of(store.get(f"here/{rank}")).peer.node for rank in present}
            missing = f"rank(s) {absent} of {info.world_size}, which never arrived"
            raise SessionError(late(info, began, missing + _silent_nodes(info, nodes)))
        time.sleep(_POLL_SECONDS)
    return [_Introduction.of(store.get(f"here/{rank}")) for rank in ranks]


def _silent_nodes(info: RankInfo, present: set[str]) -> str:
    """Name the nodes from which no rank came, where the launcher names nodes as they do."""
    silent = [host for host in info.hosts if host not in present]
    if info.launcher != "slurm" or not silent:
        return ""
    return f"; nothing came from node(s) {', '.join(silent)}"


def _check_same_run(found: list[_Introduction]) -> None:
    """Compare every rank with rank 0."""
    first, *others = found
    for other in others:
        who = f"rank {other.peer.rank} on {other.peer.host}"
        for what, theirs, ours in (
            ("launch", other.job, first.job),
            ("world size", other.world_size, first.world_size),
        ):
            if theirs != ours:
                raise SessionError(
                    f"{who} belongs to another job: its {what} is {theirs or 'unknown'}, that "
                    f"of rank 0 on {first.peer.host} is {ours or 'unknown'}"
                )
        _compare("version of ", other.versions, first.versions, who, first.peer.host)
        if other.settings is not None and first.settings is not None:
            _compare("", other.settings, first.settings, who, first.peer.host)


def _compare(
    what: str, theirs: dict[str, Any], ours: dict[str, Any], who: str, first_host: str
) -> None:
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            raise ConfigError(
                f"the ranks disagree: {what}{key} is {theirs.get(key)} on {who}, but "
                f"{ours.get(key)} on rank 0 on {first_host}"
            )


def end_if_here(peer: Peer) -> None:
    """Kill a rank's process if it is on this machine: a stopped process does not end by itself."""
    if peer.host != socket.gethostname():
        return
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(peer.pid)
        if abs(process.create_time() - peer.created) < _SAME_PROCESS_SECONDS:
            process.kill()


def route_to(peers: list[Peer], rank: int) -> str:
    """Return a peer's address, if possible on another host; this rank listens on that route."""
    others = [peer for peer in peers if peer.rank != rank and peer.address]
    far = [peer for peer in others if peer.host != peers[rank].host]
    return (far or others)[0].address if others else ""


def shared_gpus(peers: list[Peer]) -> str:
    """Say which ranks compute on one GPU, and what to do; empty if none do."""
    on: dict[tuple[str, str], list[int]] = {}
    for peer in peers:
        if peer.gpu:
            on.setdefault((peer.node, peer.gpu), []).append(peer.rank)
    shared = [ranks for ranks in on.values() if len(ranks) > 1]
    if not shared:
        return ""
    listed = "; ".join(", ".join(map(str, ranks)) for ranks in shared)
    return (
        f"more ranks than GPUs: these ranks share one GPU each: {listed}. They take turns on it "
        "and share its memory; start as many ranks as there are GPUs for the full speed of each"
    )
