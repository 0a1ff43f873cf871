"""The transport of a run on Ray: each worker is an actor, which holds the resident models.

Ray places the actors, starts and restarts their processes, and notices when one ends. A tensor
travels in a shared-memory slot to a worker on the driver's host, and through Ray's object store to
any other.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from distinf.background import Ordered, in_background, in_order
from distinf.errors import CallTimeout, SessionError, WorkerLost
from distinf.gpu import Cuda, copies_of, on_gpu
from distinf.tensors import map_leaves, map_tensors
from distinf.transport.contract import Call, Reply
from distinf.transport.in_process import InProcess, OnDriver
from distinf.transport.shared_memory import Answer, DriverMemory, Message, WorkerMemory
from distinf.transport.slots import Recycled, SlotReference
from distinf.transport.worker import Worker

log = logging.getLogger("distinf")

# Threads of an actor: calls (one computes, the input of the next one arrives), and signs of life.
CONCURRENCY = {"calls": 4, "signs": 4}
_KEPT = 3  # pieces of memory for a worker's inputs or results
_LOOK_SECONDS = 0.5
_PROBE_SECONDS = 10.0
_END_SECONDS = 10.0


@dataclass(frozen=True)
class _Packed:
    """A tensor as an array of bytes, which Ray's object store takes without pickling it."""

    array: Any
    dtype: torch.dtype
    shape: tuple[int, ...]


def _pack(tree: Any) -> Any:
    def pack(tensor: torch.Tensor) -> Any:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            return tensor
        plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return _Packed(plain.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape))

    return map_tensors(tree, pack)


def _unpack(tree: Any, memory: Recycled) -> Any:
    """Copy the tensors of a tree out of Ray's object store, whose memory cannot be written to."""

    def unpack(leaf: Any) -> Any:
        if not isinstance(leaf, _Packed):
            return leaf
        out = memory.empty(leaf.shape, leaf.dtype)
        out.reshape(-1).view(torch.uint8).numpy()[:] = leaf.array
        return out

    return map_leaves(tree, unpack)


class RayWorker:
    """A worker: what runs in the process of an actor.

    ``prepare`` sets the process up and returns the device on which its models compute.
    """

    def __init__(self, rank: int, nonfinite: str, prepare: Callable[[], torch.device]) -> None:
        self._worker = Worker(rank, prepare(), nonfinite)
        self._worker.when_unusable = leave_soon
        self._memory = WorkerMemory(self._worker)
        self._inputs = Recycled(_KEPT)

    @ray.method(concurrency_group="signs")
    def probe(self, offer: SlotReference) -> SlotReference | None:
        """Find out whether it shares memory with the driver."""
        return self._memory.probe(offer)

    @ray.method(concurrency_group="signs")
    def stay(self) -> None:
        """Never return: this call fails when Ray notices that the actor has ended."""
        threading.Event().wait()

    @ray.method(concurrency_group="signs")
    def left(self) -> tuple[str, str]:
        """Return when another rank of its group has left by an error: this host, and the error."""
        return self._worker.host, _left.result()

    @ray.method(concurrency_group="signs")
    def ping(self) -> None:
        """Answer, also while a model computes."""

    @ray.method(concurrency_group="calls")
    def run(self, wire: Any) -> Any:
        """Run a call."""
        message = Message(*_unpack(wire, self._inputs))
        del wire
        return _pack(tuple(self._memory.run(message)))


_left: Future[str] = Future()


def tell_left(error: str) -> None:
    """Tell the driver with which error another rank of this one's group has left."""
    _left.set_result(error)


def leave_soon(reason: str) -> None:
    """End this process after its reply is sent: every further call would fail."""
    end = threading.Timer(2.0, os._exit, (1,))
    end.daemon = True
    end.start()


@dataclass(eq=False)
class _Request:
    """What was asked of a worker, and its answer."""

    rank: int
    what: str
    timeout: float | None
    deadline: float
    answer: Future[Any] = field(default_factory=Future)


class RayTransport:
    """The driver's end: carries calls to the actors, and runs those of rank 0 here.

    ``worker`` is the driver's own; ``actors`` are Ray's handles by rank, of which none has to be
    placed yet. ``lost`` is called with a rank and a reason when Ray notices that a worker has
    ended; ``left`` with a rank, its host and an error when another rank of its group has left by
    that error. With ``results_stay`` results are put on the driver's device.
    """

    def __init__(
        self,
        worker: Worker,
        actors: Mapping[int, Any],
        lost: Callable[[int, str], None],
        left: Callable[[int, str, str], None],
        results_stay: bool = False,
    ) -> None:
        self.workers: tuple[int, ...] = ()
        self.may_join = tuple(sorted(actors))
        self.carrier, self.reason = "ray", ""
        self.there: set[int] = set()  # ranks of the workers that Ray has started
        self._actors = actors
        self._tell_lost, self._tell_left = lost, left
        self._device = worker.device
        self._on_driver = OnDriver(InProcess(worker))
        self._memory = DriverMemory(len(actors))
        self._results = Recycled(_KEPT * len(actors))
        self._silent: set[int] = set()  # an answer came too late, or not yet
        self._closed = threading.Event()
        self._followed: list[Future[None]] = []
        self._open: set[_Request] = set()
        self._lock = threading.Lock()
        # Ray's own thread, on which a reply is reported, must not wait for anything.
        self._replies = Ordered("distinf-replies")
        stays = results_stay and worker.device.type == "cuda"
        self._home = Cuda(worker.device).current_stream() if stays else None

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return memory for a tensor of a call: on its device, in a slot if that is the host."""
        slot = self._memory.take(shape, dtype) if device.type == "cpu" else None
        return torch.empty(tuple(shape), dtype=dtype, device=device) if slot is None else slot

    def expect(self, nbytes: int) -> None:
        """Make memory ready, in the background."""
        self._memory.expect(nbytes)

    def watch(self, joined: Callable[[int], None], gone: Callable[[int], None]) -> None:
        """Report each worker when Ray has started it, again after each restart, and its end."""
        for rank in self.may_join:
            follow = functools.partial(self._follow, rank, joined, gone)
            self._followed.append(in_background(follow, f"distinf-worker-{rank}"))
        in_background(self._watch_deadlines, "distinf-deadlines")

    def _follow(
        self, rank: int, joined: Callable[[int], None], gone: Callable[[int], None]
    ) -> None:
        """Report one worker each time that it starts or ends, until Ray gives it up."""
        actor = self._actors[rank]
        while not self._closed.is_set():
            try:
                ray.get(actor.ping.remote())  # waits until Ray has a place for it
                self._memory.forget(rank)
                self._memory.try_rank(rank, functools.partial(self._ask_to_map, actor))
                stays, left = actor.stay.remote(), actor.left.remote()
                self._silent.discard(rank)
                self._say_carrier()
                self.there.add(rank)
                joined(rank)
                if left in ray.wait([left, stays])[0]:
                    host, why = ray.get(left)
                    self.there.discard(rank)
                    self._tell_left(rank, host, why)
                ray.get(stays)
            except RayError as error:
                if self._closed.is_set():
                    return
                if rank in self.there:
                    self.there.discard(rank)
                    self._tell_lost(rank, words_of(error))
                if not isinstance(error, ActorUnavailableError):  # Ray does not start it again
                    log.warning("rank %d does not come back: %s", rank, words_of(error))
                    gone(rank)
                    return
                self._closed.wait(_LOOK_SECONDS)

    def _ask_to_map(self, actor: Any, offer: SlotReference) -> SlotReference | None:
        answer: SlotReference | None = ray.get(actor.probe.remote(offer), timeout=_PROBE_SECONDS)
        return answer

    def _say_carrier(self) -> None:
        sharing, workers = len(self._memory.ranks), len(self.may_join)
        some = "" if sharing == workers else f" with {sharing} of {workers}"
        self.carrier = "ray" + (f" (shared memory{some})" if sharing else "")

    def send(self, rank: int, call: Call, timeout: float | None) -> Future[Reply]:
        """Carry a call to a worker, or run it on rank 0."""
        if rank == 0:
            return self._on_driver.send(call, timeout)
        if call.method == "__build__":
            self._on_driver.note_build(call)
        given, request = (call.args, call.kwargs), self._request(rank, call.task, timeout)
        wait: Callable[[], Any] = lambda: given  # noqa: E731
        if on_gpu(given) is not None:
            take = self._memory.take
            copies = copies_of(self._device)
            wait = copies.to_host(given, call.ready, lambda x: take(x.shape, x.dtype)).wait
        # On another thread: Ray takes 100 ms for a tensor that goes through its object store.
        in_order(functools.partial(self._send, request, call, wait))
        return request.answer

    def _send(self, request: _Request, call: Call, wait: Callable[[], Any]) -> None:
        try:
            call = Call(call.model, call.method, call.task, *wait())
            message, unpack = self._memory.pack(request.rank, call)
            try:
                self._begin(
                    request,
                    self._actors[request.rank].run.remote(_pack(tuple(message))),
                    lambda wire: self._receive(unpack(Answer(*_unpack(wire, self._results)))),
                )
            except Exception:
                self._memory.unsent(request.rank, message)
                raise
        except Exception as error:
            self._fail(request, error)

    def _receive(self, reply: Reply) -> Reply:
        if self._home is None or reply.failure is not None:
            return reply
        return replace(reply, value=copies_of(self._device).to_device(reply.value, self._home))

    def _request(self, rank: int, what: str, timeout: float | None) -> _Request:
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        request = _Request(rank, what, timeout, deadline)
        with self._lock:
            self._open.add(request)
        return request

    def _begin(self, request: _Request, reply: Any, receive: Callable[[Any], Any]) -> None:
        """Complete a request with what ``receive`` returns for an actor's reply."""

        def complete(done: Future[Any]) -> None:
            if self._end(request):
                try:
                    value = receive(done.result())
                except Exception as error:
                    self._fail(request, error)
                else:
                    self._silent.discard(request.rank)
                    request.answer.set_result(value)

        reply.future().add_done_callback(lambda done: self._replies.submit(lambda: complete(done)))

    def _end(self, request: _Request) -> bool:
        """Whether a request was still open."""
        with self._lock:
            was_open = request in self._open
            self._open.discard(request)
            return was_open

    def _fail(self, request: _Request, error: Exception) -> None:
        self._end(request)
        found: Exception
        if isinstance(error, WorkerLost):
            found = error
        elif isinstance(error, RayTaskError) or not isinstance(error, RayError):
            cause = error.cause if isinstance(error, RayTaskError) else error
            words = str(cause) or type(cause).__name__
            what = f"{request.what} on rank {request.rank}"
            found = SessionError(f"{what} could not be carried: {words}")
        else:
            found = WorkerLost(request.rank, words_of(error))
        request.answer.set_exception(found)

    def _watch_deadlines(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            now = time.monotonic()
            with self._lock:
                late = [request for request in self._open if request.deadline < now]
            for request in late:
                if self._end(request):
                    self._silent.add(request.rank)
                    what = f"{request.what} on rank {request.rank}"
                    request.answer.set_exception(
                        CallTimeout(f"{what}: no answer in {request.timeout:g} s")
                    )

    def ping(self, rank: int, timeout: float) -> Future[None]:
        """Ask a worker for a sign of life: Ray does not notice a process that is stopped."""
        request = self._request(rank, "a sign of life", timeout)
        try:
            if self._closed.is_set():
                raise WorkerLost(rank, "the session is closed")
            self._begin(request, self._actors[rank].ping.remote(), lambda _: None)
        except Exception as error:
            self._fail(request, error)
        return request.answer

    def mark_lost(self, rank: int) -> None:
        """Let Ray start a worker again that does not answer; it does so by itself for others."""
        self._memory.forget(rank)
        if rank in self._silent and not self._closed.is_set():
            self._silent.discard(rank)
            # It waits for the raylet of this process, which may be what does not answer.
            kill = functools.partial(ray.kill, self._actors[rank], no_restart=False)
            in_background(kill, f"distinf-kill-{rank}")

    def close(self, error: bool = False) -> None:
        """End the actors.

        A raylet that does not answer is not waited for. No thread may still use Ray when it is
        shut down: Ray would end this process with status 1.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        ending = in_background(self._kill_all, "distinf-kill")
        with self._lock:
            failing = [request.answer for request in self._open]
        wait([ending, *self._followed, *failing], _END_SECONDS)
        wait([self._replies.submit(lambda: None)], _END_SECONDS)  # it holds references of Ray's

    def _kill_all(self) -> None:
        for actor in self._actors.values():
            with contextlib.suppress(RayError, RuntimeError):  # the cluster has ended before
                ray.kill(actor)


def words_of(error: RayError) -> str:
    """Return the line of an error of Ray's that says why, without the number of the actor."""
    lines = re.sub(r"\x1b\[\d+m", "", str(error)).strip().splitlines()
    raised = isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False)
    first = next(iter(lines[-1:] if raised else lines), "")
    first = re.sub(r"The actor \w+ is unavailable: |The task may or may not .*", "", first)
    return f"Ray reports {type(error).__name__}: {first}".rstrip(": .")
