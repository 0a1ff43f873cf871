"""The carrier of a run with several processes: TensorPipe RPC of torch.distributed.

The only module that knows torch.distributed.rpc. Messages are pickled, so whoever can reach a
rank's port can run code there: the session binds them to loopback on one node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import rpc

from distinf.errors import CallTimeout, SessionError, WorkerLost
from distinf.transport.carrier import Choice
from distinf.transport.contract import Call, Reply, map_tensors
from distinf.transport.streams import Copies, Cuda, Departures, on_gpu
from distinf.worker import Worker

__all__ = ["TensorPipe", "join", "serve"]

_SCHEME = "distinf"
_FOREVER = 0.0  # torch.distributed.rpc's word for no timeout
_THREADS = 16
_PART_SECONDS = 5.0
# Channels that carry host memory. The others load CUDA, and cuda_ipc ends the process where GPUs
# cannot see each other (pytorch#95487), whether or not tensors are on them.
_HOST_CHANNELS = ["cma", "mpt_uv", "basic"]
# From device to device; not cuda_basic, which goes through host memory and is slower than we are.
_DEVICE_CHANNELS = ["cuda_ipc", "basic"]
_NETWORK_CHANNELS = ["cuda_ipc", "cuda_gdr", "basic"]
# What TensorPipe says of a peer that is no longer there.
_GONE = ("eof", "connection reset", "broken pipe", "connection refused", "econn", "epipe")

_store: dist.Store | None = None
_worker: Worker | None = None
_stops: dict[int, torch.futures.Future[bool]] = {}
_stops_lock = threading.Lock()
# How often this process has parted together with its peers. Torch numbers these partings in each
# process, out of our reach, and peers wait for one another under that number. So a driver at its
# second session cannot part together with ranks that it started for that session.
_partings = 0
_partings_of: dict[int, int] = {}


def _name(rank: int) -> str:
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
    worker: Worker,
    world_size: int,
    store: dist.Store,
    device_maps: dict[int, dict[torch.device, torch.device]],
    timeout: float,
    several_nodes: bool = False,
) -> None:
    """Join the RPC group of a session; every rank calls this at the same time.

    Parameters
    ----------
    worker : Worker
        Runs the calls that arrive here.
    world_size : int
        Number of ranks.
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
    global _store, _worker
    _store, _worker = store, worker
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=max(_THREADS, 2 * world_size),
        rpc_timeout=timeout,
        init_method=f"{_SCHEME}://{worker.rank}/{world_size}",
        # The others poll a whole core while idle and need thousands of file descriptors.
        _transports=["uv"],
        _channels=_channels(bool(device_maps), several_nodes),
    )
    for peer, devices in device_maps.items():
        options.set_device_map(_name(peer), devices)
    _forget_earlier_groups()
    # All ranks are here, but init_rpc itself would wait for days for one that ends now.
    guard = _end_process_after(timeout, f"rank {worker.rank}: no RPC group within {timeout:g} s")
    try:
        with warnings.catch_warnings():
            # torch's own use of its deprecated Backend API in init_rpc.
            warnings.filterwarnings("ignore", message="You are using a Backend")
            rpc.init_rpc(
                _name(worker.rank),
                rank=worker.rank,
                world_size=world_size,
                rpc_backend_options=options,
            )
    except Exception as error:
        raise SessionError(f"rank {worker.rank} could not join the RPC group: {error}") from error
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
        together = rpc.rpc_sync(_name(0), _until_stop, args=(rank, _partings), timeout=_FOREVER)
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
    guard = _end_process_after(_PART_SECONDS, "")
    try:
        rpc.shutdown(graceful=together, timeout=_PART_SECONDS / 2)
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


def _run(call: Call) -> Reply:
    assert _worker is not None
    return _worker.run(call)


def _touch(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 1


def _alive() -> None:
    """Answer on a thread of its own, whatever a model does meanwhile."""


class TensorPipe:
    """The driver's end: carries calls to the workers.

    Parameters
    ----------
    worker : Worker
        The driver's own, for its rank and device.
    world_size : int
        Number of ranks.
    store : torch.distributed.Store
        The session's store; a worker leaves its farewell there.
    choice : Choice
        How tensors travel, and why.
    results_stay : bool, optional
        Whether results come to the driver's device, by default False: to host memory.
    """

    def __init__(
        self,
        worker: Worker,
        world_size: int,
        store: dist.Store,
        choice: Choice,
        results_stay: bool = False,
    ) -> None:
        self.workers = tuple(range(1, world_size))
        self.carrier, self.reason = choice.carrier, choice.why
        self._store = store
        self._on_device = choice.carrier == "cuda"
        self._copies: Copies | None = None
        self._departures: Departures | None = None
        self._results_stay = results_stay and worker.device.type == "cuda"
        if worker.device.type == "cuda":
            cuda = Cuda(worker.device)
            self._copies = Copies(cuda)
            self._home = cuda.current_stream()  # of the thread that opens the session
            if not self._on_device:
                self._departures = Departures(self._copies)
        self._device = worker.device
        if self._on_device:
            self._open_channels()
        self._lost: set[int] = set()
        self._closed = False

    def send(self, rank: int, call: Call, timeout: float | None) -> Future[Reply]:
        """Carry a call to a worker."""
        answer: Future[Reply] = Future()
        if rank in self._lost or self._closed:
            answer.set_exception(WorkerLost(rank, "it left the session"))
            return answer
        if self._departures is not None and on_gpu((call.args, call.kwargs)) is not None:
            self._departures.depart(
                (call.args, call.kwargs),
                call.ready,
                lambda copied: self._send(answer, rank, call, copied, timeout),
                lambda error: answer.set_exception(self._translate(rank, call, error, timeout)),
            )
            return answer
        if not self._on_device:
            args, kwargs = map_tensors((call.args, call.kwargs), lambda tensor: tensor.cpu())
        else:
            args, kwargs = call.args, call.kwargs
            if call.ready is not None:  # the thread that sends may not be the one that selected
                torch.cuda.current_stream(self._device).wait_event(call.ready)
        self._send(answer, rank, call, (args, kwargs), timeout)
        return answer

    def _send(
        self,
        answer: Future[Reply],
        rank: int,
        call: Call,
        tensors: tuple[Any, Any],
        timeout: float | None,
    ) -> None:
        """Send a call whose tensors are where they travel from."""
        if rank in self._lost or self._closed:  # meanwhile
            answer.set_exception(WorkerLost(rank, "it left the session"))
            return
        wire = Call(call.model, call.method, call.task, *tensors)
        try:
            reply = rpc.rpc_async(
                _name(rank), _run, args=(wire,), timeout=_FOREVER if timeout is None else timeout
            )
        except Exception as error:  # also whatever pickling an argument raised
            answer.set_exception(self._translate(rank, call, error, timeout))
            return
        reply.add_done_callback(functools.partial(self._deliver, answer, rank, call, timeout))

    def _open_channels(self) -> None:
        """Let a tensor travel each way: when it first does, cuda_ipc waits for the whole GPU."""
        for rank in self.workers:
            there = torch.zeros(1, device=self._device)
            try:
                rpc.rpc_sync(_name(rank), _touch, args=(there,))
            except RuntimeError as error:
                raise SessionError(
                    f"no tensor travels between the GPUs of rank 0 and rank {rank}: {error}. Use "
                    "runtime.carrier=host"
                ) from error

    def ping(self, rank: int, timeout: float) -> Future[None]:
        """Ask a worker for a sign of life."""
        answer: Future[None] = Future()
        call = Call(-1, "ping", "a sign of life")
        try:
            sign = rpc.rpc_async(_name(rank), _alive, timeout=timeout)
        except Exception as error:
            answer.set_exception(self._translate(rank, call, error, timeout))
            return answer
        sign.add_done_callback(functools.partial(self._deliver, answer, rank, call, timeout))
        return answer

    def lose(self, rank: int) -> None:
        """Take note that a rank's process has ended."""
        self._lost.add(rank)

    def close(self, error: bool = False) -> None:
        """Tell every worker to part, wait for those that live, then part.

        Parameters
        ----------
        error : bool, optional
            Whether the session ends by an error: a worker may then be inside a model.
        """
        if self._closed:
            return
        self._closed = True
        with _stops_lock:
            alike = all(_partings_of.get(rank, 0) == _partings for rank in self.workers)
            together = alike and not (error or self._lost)
            for rank in self.workers:
                stop = _stops.setdefault(rank, torch.futures.Future())
                if not stop.done():
                    stop.set_result(together)
        deadline = time.monotonic() + _PART_SECONDS
        while time.monotonic() < deadline:
            living = [_farewell(rank) for rank in self.workers if rank not in self._lost]
            if not living or self._store.check(living):
                break
            time.sleep(0.01)
        if self._departures is not None:
            self._departures.close()
        _leave(together)
        with _stops_lock:
            _stops.clear()
            _partings_of.clear()

    def _deliver(
        self,
        answer: Future[Any],
        rank: int,
        call: Call,
        timeout: float | None,
        reply: torch.futures.Future[Any],
    ) -> None:
        try:
            value = reply.wait()
            if isinstance(value, Reply) and value.unusable:
                self.lose(rank)  # it leaves by itself, so nobody may wait to part together with it
            if isinstance(value, Reply) and self._results_stay and value.failure is None:
                assert self._copies is not None
                value = dataclasses.replace(
                    value, value=self._copies.to_device(value.value, self._home)
                )
        except Exception as error:
            answer.set_exception(self._translate(rank, call, error, timeout))
        else:
            answer.set_result(value)

    def _translate(
        self, rank: int, call: Call, error: Exception, timeout: float | None
    ) -> Exception:
        text = str(error) or type(error).__name__
        what = f"{call.task or call.method} on rank {rank}"
        if "timeout" in text.lower() or "timed out" in text.lower():
            return CallTimeout(f"{what}: no answer in {timeout:g} s")
        if any(word in text.lower() for word in _GONE):
            return WorkerLost(rank, f"its connection ended ({text.splitlines()[0]})")
        return SessionError(f"{what} could not be carried: {text}")
