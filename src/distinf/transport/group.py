"""The RPC group of a session: how its ranks join it, serve in it and part.

Messages are pickled, so whoever can reach a rank's port can run code there: the session binds them
to loopback on one node.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import rpc

from distinf.errors import SessionError

__all__ = ["FOREVER", "PART_SECONDS", "join", "name_of", "part", "serve"]

_SCHEME = "distinf"
FOREVER = 0.0  # torch.distributed.rpc's word for no timeout
_THREADS = 16
PART_SECONDS = 5.0
# Channels that carry host memory. The others load CUDA, and cuda_ipc ends the process where GPUs
# cannot see each other (pytorch#95487), whether or not tensors are on them.
_HOST_CHANNELS = ["cma", "mpt_uv", "basic"]
# From device to device; not cuda_basic, which goes through host memory and is slower than we are.
_DEVICE_CHANNELS = ["cuda_ipc", "basic"]
_NETWORK_CHANNELS = ["cuda_ipc", "cuda_gdr", "basic"]
_store: dist.Store | None = None
_stops: dict[int, torch.futures.Future[bool]] = {}
_stops_lock = threading.Lock()
# How often this process has parted together with its peers. Torch numbers these partings in each
# process, out of our reach, and peers wait for one another under that number. So a driver at its
# second session cannot part together with ranks that it started for that session.
_partings = 0
_partings_of: dict[int, int] = {}


def name_of(rank: int) -> str:
    """Name of a rank in the group."""
    return f"rank{rank}"


def _farewell(rank: int) -> str:
    return f"left/{rank}"


def _rendezvous(url: str, **query: Any) -> Iterator[tuple[dist.Store, int, int]]:
    rank, world_size = url.split("//")[1].split("?")[0].split("/")
    assert _store is not None
    yield _store, int(rank), int(world_size)
    raise RuntimeError(f"{url}: a session is joined once")


with contextlib.suppress(RuntimeError):  # registered already, by an earlier import
    dist.register_rendezvous_handler(_SCHEME, _rendezvous)


def join(
    rank: int,
    world_size: int,
    store: dist.Store,
    device_maps: dict[int, dict[torch.device, torch.device]],
    timeout: float,
    several_nodes: bool = False,
) -> None:
    """Join the RPC group of a session; every rank calls this at the same time.

    Parameters
    ----------
    rank, world_size : int
        This process's rank, and the number of ranks.
    store : torch.distributed.Store
        Where the ranks find each other's addresses; used for this session alone.
    device_maps : dict[int, dict[torch.device, torch.device]]
        For each peer, which of its devices takes the tensors of which of ours; empty: tensors
        travel through host memory.
    timeout : float
        Deadline in seconds for the peers to answer.
    several_nodes : bool, optional
        Whether tensors travel from device to device between nodes, too.

    Raises
    ------
    SessionError
        If the group could not be formed.
    """
    global _store
    _store = store
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=max(_THREADS, 2 * world_size),
        rpc_timeout=timeout,
        init_method=f"{_SCHEME}://{rank}/{world_size}",
        # The others poll a whole core while idle and need thousands of file descriptors.
        _transports=["uv"],
        _channels=_channels(bool(device_maps), several_nodes),
    )
    for peer, devices in device_maps.items():
        options.set_device_map(name_of(peer), devices)
    _forget_earlier_groups()
    # All ranks are here, but init_rpc itself would wait for days for one that ends now.
    guard = _end_process_after(timeout, f"rank {rank}: no RPC group within {timeout:g} s")
    try:
        with warnings.catch_warnings():
            # torch's own use of its deprecated Backend API in init_rpc.
            warnings.filterwarnings("ignore", message="You are using a Backend")
            rpc.init_rpc(
                name_of(rank),
                rank=rank,
                world_size=world_size,
                rpc_backend_options=options,
            )
    except Exception as error:
        raise SessionError(f"rank {rank} could not join the RPC group: {error}") from error
    finally:
        guard.cancel()
        _store = None


def _channels(on_device: bool, several_nodes: bool) -> list[str]:
    if not on_device:
        return _HOST_CHANNELS
    return _NETWORK_CHANNELS if several_nodes else _DEVICE_CHANNELS


def _forget_earlier_groups() -> None:
    """Let torch's RPC begin to count anew.

    It numbers the groups that a process has joined, and their collectives, and ranks meet under
    these numbers. A worker that was started for this session counts from zero, a driver at its
    second session does not. The store is this session's alone, so equal numbers do no harm.
    """
    rpc._init_counter = 0
    rpc.api._all_gather_sequence_id.clear()
    rpc.api._all_gather_sequence_id_to_states.clear()


def serve(rank: int, store: dist.Store) -> None:
    """Serve calls until the driver says stop.

    Parameters
    ----------
    rank : int
        This process's rank.
    store : torch.distributed.Store
        The session's store, for the farewell.

    The wait is one call to the driver that it answers at the end, so the driver's death ends
    it within milliseconds.

    Raises
    ------
    SessionError
        If the driver is gone.
    """
    try:
        together = rpc.rpc_sync(name_of(0), _until_stop, args=(rank, _partings), timeout=FOREVER)
        store.set(_farewell(rank), "")
    except RuntimeError as error:
        _leave(together=False)
        raise SessionError(f"the driver (rank 0) is gone: {error}") from error
    _leave(together)


def _leave(together: bool) -> None:
    """Shut RPC down: with the peers when all live, else without asking them."""
    global _partings
    _partings += together
    # A thread that is inside a model cannot be stopped; its process can.
    guard = _end_process_after(PART_SECONDS, "")
    try:
        rpc.shutdown(graceful=together, timeout=PART_SECONDS / 2)
    except RuntimeError:  # somebody ended meanwhile
        rpc.shutdown(graceful=False)
    guard.cancel()


def _end_process_after(seconds: float, message: str) -> threading.Timer:
    def end() -> None:
        if message:
            print(f"distinf: {message}", file=sys.stderr, flush=True)
        os._exit(1)

    guard = threading.Timer(seconds, end)
    guard.daemon = True
    guard.start()
    return guard


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def _until_stop(rank: int, partings: int) -> torch.futures.Future[bool]:
    with _stops_lock:
        _partings_of[rank] = partings
        return _stops.setdefault(rank, torch.futures.Future())


def part(workers: Collection[int], lost: Collection[int], store: dist.Store, error: bool) -> None:
    """Tell every worker to part, wait for those that live, then part; the driver's end.

    Parameters
    ----------
    workers, lost : Collection[int]
        All workers of the session, and those whose processes have ended.
    store : torch.distributed.Store
        The session's store, where workers leave their farewells.
    error : bool
        Whether the session ends by an error: a worker may then be inside a model.
    """
    with _stops_lock:
        alike = all(_partings_of.get(rank, 0) == _partings for rank in workers)
        together = alike and not (error or lost)
        for rank in workers:
            stop = _stops.setdefault(rank, torch.futures.Future())
            if not stop.done():
                stop.set_result(together)
    deadline = time.monotonic() + PART_SECONDS
    while time.monotonic() < deadline:
        living = [_farewell(rank) for rank in workers if rank not in lost]
        if not living or store.check(living):
            break
        time.sleep(0.01)
    _leave(together)
    with _stops_lock:
        _stops.clear()
        _partings_of.clear()
