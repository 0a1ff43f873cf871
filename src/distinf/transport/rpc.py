"""The carrier of a run with several processes: TensorPipe RPC of torch.distributed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import rpc

from distinf.departures import Departures
from distinf.errors import CallTimeout, SessionError, WorkerLost
from distinf.gpu import Cuda
from distinf.streams import Copies, on_gpu
from distinf.tensors import tensor_bytes
from distinf.transport import group
from distinf.transport.carrier import Choice
from distinf.transport.contract import Call, Reply
from distinf.transport.group import name_of
from distinf.transport.shared_memory import Answer, DriverMemory, Message, WorkerMemory
from distinf.transport.slots import SMALL, Placed
from distinf.transport.worker import Worker

__all__ = ["RpcTransport", "join_rpc", "serve"]

# What TensorPipe says of a peer that is no longer there.
_GONE = ("eof", "connection reset", "broken pipe", "connection refused", "econn", "epipe")

_memory: WorkerMemory | None = None


def join_rpc(
    worker: Worker,
    world_size: int,
    store: dist.Store,
    device_maps: dict[int, dict[torch.device, torch.device]],
    timeout: float,
    several_nodes: bool = False,
) -> None:
    """Join the RPC group of a session, to run the calls that arrive; as :func:`group.join`.

    Parameters
    ----------
    worker : Worker
        Runs the calls.
    """
    global _memory
    _memory = WorkerMemory(worker)
    group.join(worker.rank, world_size, store, device_maps, timeout, several_nodes)


def serve(rank: int, store: dist.Store) -> None:
    """Serve calls until the driver says stop; as :func:`group.serve`."""
    global _memory
    try:
        group.serve(rank, store)
    finally:
        _memory = None


def _run(*wire: Any) -> tuple[Any, ...]:
    assert _memory is not None
    return _memory.run(Message.of(*wire)).wire()


def _probe(offer: Placed) -> Placed | None:
    assert _memory is not None
    return _memory.probe(offer)


def _ask(rank: int, offer: Placed) -> Placed | None:
    answer: Placed | None = rpc.rpc_sync(
        name_of(rank), _probe, args=(offer,), timeout=group.PART_SECONDS
    )
    return answer


def _nothing(value: Any) -> Any:
    return value


def _touch(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 1


def _alive() -> None:
    """Answer on a thread of its own, whatever a model does meanwhile."""


class RpcTransport:
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
        # RPC takes names as well, and looks them up at every call.
        self._infos = {rank: rpc.get_worker_info(name_of(rank)) for rank in self.workers}
        self.reason = choice.why
        self._store = store
        self._device = worker.device
        self._on_device = choice.carrier == "cuda"
        self._memory = DriverMemory(len(self.workers))
        self._copies: Copies | None = None
        self._departures = Departures()
        self._results_stay = results_stay and worker.device.type == "cuda"
        self._lost: set[int] = set()
        self._closed = False
        if worker.device.type == "cuda":
            cuda = Cuda(worker.device)
            self._copies = Copies(cuda)
            self._home = cuda.current_stream()  # of the thread that opens the session
        if self._on_device:
            self._open_channels()
        else:
            for rank in self.workers:
                self._memory.try_rank(rank, functools.partial(_ask, rank))

    @property
    def carrier(self) -> str:
        """Its name, and how many workers take tensors from shared memory."""
        sharing = len(self._memory.ranks)
        if self._on_device or not sharing:
            return "cuda" if self._on_device else "host"
        some = "" if sharing == len(self.workers) else f" with {sharing} of {len(self.workers)}"
        return f"host (shared memory{some})"

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return memory for a tensor of a call: on its device, in a slot if that is the host."""
        slot = self._memory.take(shape, dtype) if device.type == "cpu" else None
        return torch.empty(tuple(shape), dtype=dtype, device=device) if slot is None else slot

    def expect(self, nbytes: int) -> None:
        """Make memory ready, in the background."""
        self._memory.expect(nbytes)

    def send(self, rank: int, call: Call, timeout: float | None) -> Future[Reply]:
        """Carry a call to a worker."""
        answer: Future[Reply] = Future()
        if rank in self._lost or self._closed:
            answer.set_exception(WorkerLost(rank, "it left the session"))
            return answer
        wait = self._wait_for(call)
        if wait is None:
            self._send(answer, rank, call, (call.args, call.kwargs), timeout)
        else:
            self._departures.depart(
                wait,
                lambda tensors: self._send(answer, rank, call, tensors, timeout),
                lambda error: answer.set_exception(self._translate(rank, call, error, timeout)),
            )
        return answer

    def _wait_for(self, call: Call) -> Callable[[], Any] | None:
        """Return what waits until a call's arguments can travel; None if they leave at once."""
        given = call.args, call.kwargs
        if on_gpu(given) is None:
            # Pickling takes ten times as long when a large copy has just filled the caches.
            return (lambda: given) if tensor_bytes(given) >= SMALL else None
        if self._on_device:
            if call.ready is not None:  # this may not be the thread that selected
                torch.cuda.current_stream(self._device).wait_event(call.ready)
            return None
        assert self._copies is not None

        def allocate(tensor: torch.Tensor) -> torch.Tensor | None:
            return self._memory.take(tensor.shape, tensor.dtype)

        return self._copies.to_host(given, call.ready, allocate).wait

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
        message, unpack = self._memory.pack(
            rank, Call(call.model, call.method, call.task, *tensors)
        )
        try:
            reply = rpc.rpc_async(
                self._infos[rank],
                _run,
                args=message.wire(),
                timeout=group.FOREVER if timeout is None else timeout,
            )
        except Exception as error:  # also whatever pickling an argument raised
            self._memory.unsent(rank, message)
            answer.set_exception(self._translate(rank, call, error, timeout))
            return

        def receive(wire: Any) -> Reply:
            return self._receive(unpack(Answer.of(*wire)))

        deliver = functools.partial(self._deliver, answer, rank, call, timeout, receive)
        reply.add_done_callback(deliver)

    def _receive(self, reply: Reply) -> Reply:
        if not self._results_stay or reply.failure is not None:
            return reply
        assert self._copies is not None
        return dataclasses.replace(reply, value=self._copies.to_device(reply.value, self._home))

    def _open_channels(self) -> None:
        """Let a tensor travel each way: when it first does, cuda_ipc waits for the whole GPU."""
        for rank in self.workers:
            there = torch.zeros(1, device=self._device)
            try:
                rpc.rpc_sync(self._infos[rank], _touch, args=(there,))
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
            sign = rpc.rpc_async(self._infos[rank], _alive, timeout=timeout)
        except Exception as error:
            answer.set_exception(self._translate(rank, call, error, timeout))
            return answer
        deliver = functools.partial(self._deliver, answer, rank, call, timeout, _nothing)
        sign.add_done_callback(deliver)
        return answer

    def lose(self, rank: int) -> None:
        """Take note that a rank has ended, or hangs: nobody waits for it at the end."""
        self._lost.add(rank)

    def close(self, error: bool = False) -> None:
        """Tell every worker to part, wait for those that live, then part.

        Parameters
        ----------
        error : bool, optional
            Whether the session ends by an error: a worker may then be inside a model.
        """
        global _memory
        if self._closed:
            return
        self._closed = True
        self._departures.close()
        group.part(self.workers, self._lost, self._store, error)
        _memory = None

    def _deliver(
        self,
        answer: Future[Any],
        rank: int,
        call: Call,
        timeout: float | None,
        receive: Callable[[Any], Any],
        reply: torch.futures.Future[Any],
    ) -> None:
        try:
            value = receive(reply.wait())
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
