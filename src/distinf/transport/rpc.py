"""The transport of a run with several processes: TensorPipe RPC of torch.distributed.

Messages are pickled, so whoever can reach a rank's port can run code there: the session binds them
to loopback on one node.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import rpc

from distinf.background import in_order
from distinf.errors import CallTimeout, SessionError, StateLost, WorkerLost
from distinf.gpu import Cuda, copies_of, on_gpu
from distinf.tensors import tensor_bytes
from distinf.transport.contract import Call, Choice, Remote, Reply
from distinf.transport.in_process import InProcess, OnDriver
from distinf.transport.shared_memory import Answer, DriverMemory, Message, WorkerMemory
from distinf.transport.slots import SMALL, SlotReference
from distinf.transport.worker import Worker

_SCHEME = "distinf"
_FOREVER = 0.0  # torch.distributed.rpc's value for no timeout
_THREADS = 16
_CLOSE_SECONDS = 5.0
# Channels that carry host memory. The others load CUDA, and cuda_ipc ends the process where GPUs
# cannot see each other (pytorch#95487), whether or not tensors are on them.
_HOST_CHANNELS = ["cma", "mpt_uv", "basic"]
# From device to device; not cuda_basic, which goes through host memory and is slower than we are.
_DEVICE_CHANNELS = ["cuda_ipc", "basic"]
_NETWORK_CHANNELS = ["cuda_ipc", "cuda_gdr", "basic"]
# TensorPipe's words for a peer that no longer exists.
_GONE = ("eof", "connection reset", "broken pipe", "connection refused", "econn", "epipe")


class _Group:
    """The RPC group of a session in this process; calls of other ranks find it as `_group`."""

    def __init__(self) -> None:
        self.store: dist.Store | None = None  # while joining
        self.memory: WorkerMemory | None = None
        self.worker: Worker | None = None
        self.on_device = False  # tensors travel from device to device
        self.fetch_timeout = 0.0  # seconds
        self._lock = threading.Lock()
        self._stops: dict[int, torch.futures.Future[bool]] = {}
        # How often this process has shut RPC down together with its peers, in all its sessions.
        # Torch counts these shutdowns in each process, and ranks wait for each other under this
        # number. So a driver in its second session cannot shut down together with ranks that it
        # started for that session.
        self._shutdowns = 0
        self._shutdowns_of: dict[int, int] = {}

    def serve(self, rank: int, store: dist.Store) -> None:
        """Serve calls until the driver stops this worker, then leave the group.

        The wait is one call to the driver that it answers at the end, so the driver's death ends
        it within milliseconds. ``store`` is the session's. Raises `SessionError` if the driver is
        gone.
        """
        try:
            together = rpc.rpc_sync(
                _name_of(0), _until_stop, args=(rank, self._shutdowns), timeout=_FOREVER
            )
            store.set(_stopped_key(rank), "")
        except RuntimeError as error:
            self._leave(together=False)
            raise SessionError(f"the driver (rank 0) is gone: {error}") from error
        self._leave(together)

    def until_stop(self, rank: int, shutdowns: int) -> torch.futures.Future[bool]:
        """Return the future that says when a worker stops, and whether together with the others."""
        with self._lock:
            self._shutdowns_of[rank] = shutdowns
            return self._stops.setdefault(rank, torch.futures.Future())

    def stop_workers(
        self, workers: Collection[int], lost: Collection[int], store: dist.Store, error: bool
    ) -> None:
        """Stop every worker, wait for those that live, then leave the group; on the driver."""
        with self._lock:
            same = all(self._shutdowns_of.get(rank, 0) == self._shutdowns for rank in workers)
            together = same and not (error or lost)
            for rank in workers:
                stop = self._stops.setdefault(rank, torch.futures.Future())
                if not stop.done():
                    stop.set_result(together)
        deadline = time.monotonic() + _CLOSE_SECONDS
        living = [_stopped_key(rank) for rank in workers if rank not in lost]
        while living and not store.check(living) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._leave(together)
        with self._lock:
            self._stops.clear()
            self._shutdowns_of.clear()

    def _leave(self, together: bool) -> None:
        """Shut RPC down: with the peers when all live, else without asking them."""
        self._shutdowns += together
        # A thread that is inside a model cannot be stopped; its process can.
        guard = _end_process_after(_CLOSE_SECONDS, "")
        try:
            rpc.shutdown(graceful=together, timeout=_CLOSE_SECONDS / 2)
        except RuntimeError:  # a peer ended in the meantime
            rpc.shutdown(graceful=False)
        finally:
            self.memory = self.worker = None
        guard.cancel()


_group = _Group()
serve = _group.serve


def _name_of(rank: int) -> str:
    return f"rank{rank}"


def _stopped_key(rank: int) -> str:
    return f"left/{rank}"


def _rendezvous(url: str, **query: Any) -> Iterator[tuple[dist.Store, int, int]]:
    rank, world_size = url.split("//")[1].split("?")[0].split("/")
    assert _group.store is not None
    yield _group.store, int(rank), int(world_size)
    raise RuntimeError(f"{url}: a session is joined once")


with contextlib.suppress(RuntimeError):  # registered already, by an earlier import
    dist.register_rendezvous_handler(_SCHEME, _rendezvous)


def join_rpc(
    worker: Worker,
    world_size: int,
    store: dist.Store,
    device_maps: dict[int, dict[torch.device, torch.device]],
    timeout: float,
    several_nodes: bool = False,
    fetch_timeout: float = 60.0,
) -> None:
    """Join the RPC group of a session; every rank calls this at the same time.

    ``store`` belongs to this session alone. ``device_maps`` is that of
    :func:`distinf.transport.device_maps`; if it is empty, tensors travel through host memory. With
    ``several_nodes`` tensors travel from device to device between nodes, too. A rank that does not
    send a state that it keeps in ``fetch_timeout`` seconds is lost. Raises `SessionError` if the
    group is not formed in ``timeout`` seconds.
    """
    rank, channels = worker.rank, _HOST_CHANNELS
    if device_maps:
        channels = _NETWORK_CHANNELS if several_nodes else _DEVICE_CHANNELS
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=max(_THREADS, 2 * world_size),
        rpc_timeout=timeout,
        init_method=f"{_SCHEME}://{rank}/{world_size}",
        # The others poll a whole core while idle and need thousands of file descriptors.
        _transports=["uv"],
        _channels=channels,
    )
    for peer, devices in device_maps.items():
        options.set_device_map(_name_of(peer), devices)
    _forget_earlier_groups()
    _group.store, _group.memory = store, WorkerMemory(worker)
    _group.worker, _group.on_device = worker, bool(device_maps)
    _group.fetch_timeout = fetch_timeout
    worker.fetch = _fetch
    # All ranks are here, but init_rpc itself would wait for days for one that ends now.
    guard = _end_process_after(timeout, f"rank {rank}: no RPC group within {timeout:g} s")
    try:
        with warnings.catch_warnings():
            # torch's own use of its deprecated Backend API in init_rpc.
            warnings.filterwarnings("ignore", message="You are using a Backend")
            rpc.init_rpc(
                _name_of(rank), rank=rank, world_size=world_size, rpc_backend_options=options
            )
    except Exception as error:
        raise SessionError(f"rank {rank} could not join the RPC group: {error}") from error
    finally:
        guard.cancel()
        _group.store = None


def _forget_earlier_groups() -> None:
    """Reset torch's counts of RPC groups.

    It numbers the groups that a process has joined, and their collectives; ranks find each other
    by these numbers. A worker that was started for this session counts from zero, a driver in its
    second session does not. The store is this session's alone, so equal numbers do no harm.
    """
    rpc._init_counter = 0
    rpc.api._all_gather_sequence_id.clear()
    rpc.api._all_gather_sequence_id_to_states.clear()


def _end_process_after(seconds: float, message: str) -> threading.Timer:
    def end() -> None:
        if message:
            print(f"distinf: {message}", file=sys.stderr, flush=True)
        os._exit(1)

    guard = threading.Timer(seconds, end)
    guard.daemon = True
    guard.start()
    return guard


# What other ranks call here.


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def _until_stop(rank: int, shutdowns: int) -> torch.futures.Future[bool]:
    return _group.until_stop(rank, shutdowns)


def _run(*wire: Any) -> tuple[Any, ...]:
    assert _group.memory is not None
    return tuple(_group.memory.run(Message(*wire)))


def _probe(offer: SlotReference) -> SlotReference | None:
    assert _group.memory is not None
    return _group.memory.probe(offer)


def _give(remote: Remote) -> torch.Tensor:
    """Return what a task on another rank takes of a tensor that is kept here."""
    assert _group.worker is not None
    taken = _group.worker.kept.take(remote)
    return taken if _group.on_device else taken.cpu()


def _fetch(remote: Remote) -> torch.Tensor:
    """Get a tensor that another rank keeps; raise `StateLost` if that rank does not answer."""
    try:
        x: torch.Tensor = rpc.rpc_sync(
            _name_of(remote.rank), _give, args=(remote,), timeout=_group.fetch_timeout
        )
    except RuntimeError as error:
        words = str(error).lower()
        if "timeout" in words or "timed out" in words or any(word in words for word in _GONE):
            raise StateLost(f"rank {remote.rank} does not answer") from error
        raise
    return x


def _add_one(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 1


def _alive() -> None:
    """Answer, also while a model computes."""


@dataclass
class _Request:
    """What was asked of a rank, and its answer."""

    rank: int
    what: str
    timeout: float | None
    answer: Future[Any] = field(default_factory=Future)

    def fail(self, error: Exception) -> None:
        """Complete the answer with the library's error for one of torch's."""
        text, what = str(error) or type(error).__name__, f"{self.what} on rank {self.rank}"
        found: Exception
        if isinstance(error, WorkerLost):
            found = error
        elif "timeout" in text.lower() or "timed out" in text.lower():
            found = CallTimeout(f"{what}: no answer in {self.timeout:g} s")
        elif any(word in text.lower() for word in _GONE):
            found = WorkerLost(self.rank, f"its connection ended ({text.splitlines()[0]})")
        else:
            found = SessionError(f"{what} could not be carried: {text}")
        self.answer.set_exception(found)


class RpcTransport:
    """The driver's end: carries calls to the workers, and runs those of rank 0 here.

    ``worker`` is the driver's own; in ``store`` workers note that they have stopped; with
    ``results_stay`` results are put on the driver's device. Raises `SessionError` if no tensor
    travels between two GPUs.
    """

    may_join: tuple[int, ...] = ()

    def __init__(
        self,
        worker: Worker,
        world_size: int,
        store: dist.Store,
        choice: Choice,
        results_stay: bool = False,
    ) -> None:
        self.workers = tuple(range(1, world_size))
        # RPC takes names as well, and looks them up at every call.
        self._infos = {rank: rpc.get_worker_info(_name_of(rank)) for rank in self.workers}
        self.reason = choice.why
        self._store = store
        self._device = worker.device
        self._kept = worker.kept
        self._on_driver = OnDriver(InProcess(worker))
        self._on_device = choice.carrier == "cuda"
        self._memory = DriverMemory(len(self.workers))
        self._lost: set[int] = set()
        self._closed = False
        # The stream of the thread that opens the session, on which results are given.
        stays = results_stay and worker.device.type == "cuda"
        self._home = Cuda(worker.device).current_stream() if stays else None
        for rank in self.workers:
            if self._on_device:
                self._open_channel(rank)
            else:
                self._memory.try_rank(rank, functools.partial(self._ask_to_map, rank))
        sharing, workers = len(self._memory.ranks), len(self.workers)
        some = "" if sharing == workers else f" with {sharing} of {workers}"
        self.carrier = choice.carrier + (f" (shared memory{some})" if sharing else "")

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return memory for a tensor of a call: on its device, in a slot if that is the host."""
        slot = self._memory.take(shape, dtype) if device.type == "cpu" else None
        return torch.empty(tuple(shape), dtype=dtype, device=device) if slot is None else slot

    def expect(self, nbytes: int) -> None:
        """Make memory ready, in the background."""
        self._memory.expect(nbytes)

    def send(self, rank: int, call: Call, timeout: float | None) -> Future[Reply]:
        """Carry a call to a worker, or run it on rank 0."""
        if rank == 0:
            return self._on_driver.send(call, timeout)
        if call.method == "__build__":
            self._on_driver.note_build(call)
        request = _Request(rank, call.task or call.method, timeout)
        try:
            given = self._with_own_state(call), call.kwargs
        except Exception as error:  # no memory is left for it
            request.fail(error)
            return request.answer
        wait, at_once = (lambda: given), True
        if on_gpu(given) is None:
            # Pickling takes ten times as long when a large copy has just filled the caches.
            at_once = tensor_bytes(given) < SMALL
        elif not self._on_device:
            copies, at_once = copies_of(self._device), False
            take = self._memory.take
            wait = copies.to_host(given, call.ready, lambda x: take(x.shape, x.dtype)).wait
        elif call.ready is not None:  # this may not be the thread that selected
            torch.cuda.current_stream(self._device).wait_event(call.ready)
        if at_once:
            self._send(request, call, wait)
        else:
            in_order(functools.partial(self._send, request, call, wait))
        return request.answer

    def _with_own_state(self, call: Call) -> tuple[Any, ...]:
        """Return the arguments, with the tensor in place of a state that this rank keeps."""
        first, *rest = call.args or (None,)
        if isinstance(first, Remote) and first.rank == 0:
            return (self._kept.copy(first, self.empty), *rest)
        return call.args

    def _send(self, request: _Request, call: Call, wait: Callable[[], Any]) -> None:
        """Send a call once its arguments are in the memory from which they travel."""
        try:
            given = wait()
            if request.rank in self._lost or self._closed:
                request.answer.set_exception(WorkerLost(request.rank, "it left the session"))
                return
            call = Call(call.model, call.method, call.task, *given)
            message, unpack = self._memory.pack(request.rank, call)
            try:
                self._begin(
                    request, _run, tuple(message), lambda wire: self._receive(unpack(Answer(*wire)))
                )
            except Exception:  # also one of pickling an argument
                self._memory.unsent(request.rank, message)
                raise
        except Exception as error:
            request.fail(error)

    def _begin(
        self,
        request: _Request,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        receive: Callable[[Any], Any],
    ) -> None:
        """Call a function on a rank; the answer is what ``receive`` returns for its result."""

        def complete(result: torch.futures.Future[Any]) -> None:
            try:
                value = receive(result.wait())
            except Exception as error:
                request.fail(error)
            else:
                request.answer.set_result(value)

        deadline = _FOREVER if request.timeout is None else request.timeout
        result = rpc.rpc_async(self._infos[request.rank], function, args=args, timeout=deadline)
        result.add_done_callback(complete)

    def _receive(self, reply: Reply) -> Reply:
        if self._home is None or reply.failure is not None:
            return reply
        return replace(reply, value=copies_of(self._device).to_device(reply.value, self._home))

    def _open_channel(self, rank: int) -> None:
        """Carry a tensor each way: when cuda_ipc does so first, it waits for the whole GPU."""
        try:
            rpc.rpc_sync(self._infos[rank], _add_one, args=(torch.zeros(1, device=self._device),))
        except RuntimeError as error:
            raise SessionError(
                f"no tensor travels between the GPUs of rank 0 and rank {rank}: {error}. Use "
                "runtime.carrier=host"
            ) from error

    def _ask_to_map(self, rank: int, offer: SlotReference) -> SlotReference | None:
        answer: SlotReference | None
        answer = rpc.rpc_sync(self._infos[rank], _probe, args=(offer,), timeout=_CLOSE_SECONDS)
        return answer

    def ping(self, rank: int, timeout: float) -> Future[None]:
        """Ask a worker for a sign of life."""
        request = _Request(rank, "a sign of life", timeout)
        try:
            self._begin(request, _alive, (), lambda _: None)
        except Exception as error:
            request.fail(error)
        return request.answer

    def watch(self, joined: Callable[[int], None], gone: Callable[[int], None]) -> None:
        """Do nothing: the ranks of an RPC group are fixed."""

    def mark_lost(self, rank: int) -> None:
        """Mark a rank as lost; :meth:`close` does not wait for it."""
        self._lost.add(rank)

    def close(self, error: bool = False) -> None:
        """Stop the workers, wait for those that live, then leave the group."""
        if not self._closed:
            self._closed = True
            _group.stop_workers(self.workers, self._lost, self._store, error)
