"""The ranks of a session find each other, agree, and join one RPC group."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist

from distinf.options import Runtime
from distinf.session import launcher, manager, network, peers, rendezvous
from distinf.transport import Worker, carrier, rpc, trial

__all__ = ["meet"]

log = logging.getLogger("distinf")

_REPLY_SECONDS = 2.0  # a process that ends right behind its reply may lose it


def meet(
    place: launcher.Place,
    runtime: Runtime,
    worker: Worker,
    deadline: float,
    listener: socket.socket | None,
    refusal: BaseException | None,
    alike: Mapping[str, Any] | None,
    died: Callable[[], dict[int, str]],
) -> tuple[dist.Store, list[peers.Peer], rpc.TensorPipe | None]:
    """Find the other ranks and join them.

    Parameters
    ----------
    place : launcher.Place
        This rank among the others.
    runtime : Runtime
        The session's options.
    worker : Worker
        Runs the calls that arrive here.
    deadline : float
        On the monotonic clock.
    listener : socket.socket | None
        Where the ranks that the driver started meet; None: where the launcher says.
    refusal : BaseException | None
        Why the driver wants no session; all ranks are told.
    alike : Mapping[str, Any] | None
        What must be the same on every rank that gives it.
    died : Callable[[], dict[int, str]]
        Tells which of the ranks that the driver started have ended.

    Returns
    -------
    tuple[dist.Store, list[Peer], TensorPipe | None]
        The session's store, all ranks, and on the driver its end of the transport.

    Raises
    ------
    SessionError
        If the ranks do not find each other in time, or do not fit together.
    """
    with rendezvous.meeting(place, listener, deadline) as (store, host):
        if refusal is not None:
            peers.refuse(store, str(refusal), place.world_size)
            raise refusal
        found = peers.gather(
            store,
            place,
            worker.device,
            deadline,
            master="" if place.rank == 0 else host,
            alike=alike,
            died=died,
        )
    if place.on_one_node:
        network.use_interface("lo")
    elif runtime.interface is not None:
        network.use_interface(runtime.interface)
    elif "TP_SOCKET_IFNAME" not in os.environ:
        network.use_route(peers.route_to(found, 0) if place.rank == 0 else host)
    if place.rank == 0 and (shared := peers.shared_gpus(found)):
        log.warning(shared)
    choice = trial.choose(runtime.carrier, found, place.rank, store, place.on_one_node, deadline)
    on_device = choice.carrier == "cuda"
    maps = carrier.device_maps(place.rank, found) if on_device else {}
    kept = runtime.results == "device"
    worker.results_stay = kept and (on_device or place.rank == 0)
    if place.rank != 0:
        worker.when_unusable = functools.partial(_leave_soon, place.rank)
    left = max(10.0, deadline - time.monotonic())
    manager.initialize_manager(place, worker.device, store, left)
    rpc.join(worker, place.world_size, store, maps, left, not place.on_one_node)
    if place.rank != 0:
        return store, found, None
    return store, found, rpc.TensorPipe(worker, place.world_size, store, choice, kept)


def _leave_soon(rank: int, reason: str) -> None:
    """End this worker's process once its reply has left: its GPU fails every further call.

    Its status is 0, since some launchers end all ranks when one fails; the driver says what
    happened.
    """
    print(
        f"distinf: rank {rank} on {socket.gethostname()} leaves, its GPU can no longer be "
        f"used: {reason}",
        file=sys.stderr,
        flush=True,
    )
    end = threading.Timer(_REPLY_SECONDS, os._exit, (0,))
    end.daemon = True
    end.start()
