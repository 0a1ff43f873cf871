"""How the ranks of a session find each other, and what each then knows of the others."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from physicsnemo.distributed import DistributedManager

from distinf.errors import ConfigError, SessionError
from distinf.launch import Place

__all__ = [
    "choose_carrier",
    "device_maps",
    "device_of",
    "end_manager",
    "gather",
    "initialize_manager",
    "meet",
    "refuse",
]

_POLL_SECONDS = 0.02
_sessions = itertools.count()

Peer = dict[str, Any]


def meet(
    place: Place, address: tuple[str, int], listener: socket.socket | None, timeout: float
) -> dist.Store:
    """Meet at the launcher's store, or at the driver's own.

    Parameters
    ----------
    place : Place
        Where this rank stands.
    address : tuple[str, int]
        Host and port of the store.
    listener : socket.socket | None
        The driver's listening socket, if it started the ranks itself.
    timeout : float
        Deadline in seconds.

    Returns
    -------
    torch.distributed.Store
        A store of this session alone, so that a session can be opened again.

    Raises
    ------
    SessionError
        If it cannot be reached in time.
    """
    host, port = address
    wait = timedelta(seconds=timeout)
    if listener is not None:
        store: dist.Store = dist.TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=wait,
            master_listen_fd=listener.detach(),
        )
    else:
        hosts_store = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(
            True
        )
        try:
            store = dist.TCPStore(
                host,
                port,
                is_master=hosts_store,
                wait_for_workers=False,
                timeout=wait,
                multi_tenant=True,
            )
        except Exception as error:
            raise SessionError(
                f"rank {place.rank} could not reach the rendezvous at {host}:{port} within "
                f"{timeout:g} s: {error}"
            ) from error
    if place.launcher == "distinf":  # a store of this session alone
        return dist.PrefixStore("distinf", store)
    # The launcher's store outlives sessions, and restarts of its ranks.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"distinf/{attempt}/{next(_sessions)}", store)


def refuse(store: dist.Store) -> None:
    """Tell the ranks that wait in :func:`gather` that there will be no session."""
    store.set("refused", "")


def gather(
    store: dist.Store,
    place: Place,
    device: torch.device,
    timeout: float,
    died: Callable[[], dict[int, str]],
) -> list[Peer]:
    """Wait until every rank is here, and learn where each is.

    Parameters
    ----------
    store : torch.distributed.Store
        Of :func:`meet`.
    place, device : Place, torch.device
        Of this rank.
    timeout : float
        Deadline in seconds.
    died : Callable[[], dict[int, str]]
        Tells which ranks' processes are known to have ended, and how.

    Returns
    -------
    list[Peer]
        Host, process, device and visible GPUs of each rank.

    Raises
    ------
    SessionError
        Names the ranks that did not arrive, and why if that is known.
    """
    me = {
        "rank": place.rank,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": str(device),
        "visible": [
            str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())
        ]
        if device.type == "cuda"
        else [],
    }
    store.set(f"here/{place.rank}", json.dumps(me))
    deadline = time.monotonic() + timeout
    ranks = range(place.world_size)
    while True:
        absent = [rank for rank in ranks if not store.check([f"here/{rank}"])]
        if not absent:
            break
        if store.check(["refused"]):
            raise SessionError("the driver (rank 0) refused the run; it says why")
        for rank, how in died().items():
            raise SessionError(f"rank {rank} did not start: {how}")
        if time.monotonic() > deadline:
            raise SessionError(
                f"rank {place.rank} on {me['host']} waited {timeout:g} s "
                f"(runtime.start_timeout) for rank(s) {absent} of {place.world_size}, "
                f"which never arrived"
            )
        time.sleep(_POLL_SECONDS)
    return [json.loads(store.get(f"here/{rank}")) for rank in ranks]


def device_of(place: Place) -> torch.device:
    """Choose this rank's device, its GPU where there is one, and make it current."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def choose_carrier(carrier: str, peers: list[Peer], on_one_node: bool) -> bool:
    """Whether tensors can travel from device to device: every rank sees all GPUs, one each."""
    devices = [peer["device"] for peer in peers]
    able = (
        on_one_node
        and all(device.startswith("cuda") for device in devices)
        and len(set(devices)) == len(devices)
        and all(peer["visible"] == peers[0]["visible"] for peer in peers)
    )
    if carrier == "cuda" and not able:
        raise ConfigError(
            "runtime.carrier=cuda needs one node on which every rank has a GPU of its own and "
            f"sees the others'; the ranks' devices are {devices}. Use runtime.carrier=host"
        )
    return able and carrier != "host"


def device_maps(rank: int, peers: list[Peer]) -> dict[int, dict[torch.device, torch.device]]:
    """For each peer that this rank talks to, which of its devices takes our device's tensors."""
    mine = torch.device(peers[rank]["device"])
    others = range(1, len(peers)) if rank == 0 else [0]
    return {other: {mine: torch.device(peers[other]["device"])} for other in others}


def initialize_manager(
    place: Place, device: torch.device, store: dist.Store | None, timeout: float = 120.0
) -> None:
    """Make PhysicsNeMo's DistributedManager right on this rank.

    Its own ``initialize()`` fails without a GPU and with more ranks than GPUs, mistakes one
    launcher for another, listens on every address and waits half an hour for a missing rank
    (physicsnemo#1936, #819). So its attributes are set here, over a process group that meets
    at the session's store.
    """
    DistributedManager._shared_state["_is_initialized"] = True
    DistributedManager().__dict__.update(
        _rank=place.rank,
        _world_size=place.world_size,
        _local_rank=place.local_rank,
        _distributed=store is not None,
        _device=device,
        _cuda=device.type == "cuda",
        _initialization_method=place.launcher,
    )
    if store is not None:
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("process_group", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=timeout),
        )


def end_manager() -> None:
    """Destroy the process group, so that the next session can make its own."""
    if DistributedManager.is_initialized():
        DistributedManager.cleanup()
