"""The session of rank 0, which hands out tasks, and that of a worker, which serves calls."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from distinf.errors import SessionError
from distinf.farm import Farm, Pulse
from distinf.gpu import Cuda, Lane, to_host
from distinf.options import GroupSizes, Runtime
from distinf.session import network, peers, process, rendezvous
from distinf.session.groups import GroupMember
from distinf.session.launcher import RankInfo, lets_survivors_live
from distinf.session.local_ranks import LocalRanks
from distinf.transport import (
    Failure,
    InProcess,
    Peer,
    Replicas,
    Reply,
    RpcTransport,
    Transport,
    Worker,
    choose_carrier,
    device_maps,
    join_rpc,
    serve,
    why_it_left,
)

if TYPE_CHECKING:
    from distinf.report import MetricsServer

log = logging.getLogger("distinf")

_STUCK_SECONDS = 20.0  # in which rank 0 leaves a collective whose ranks are lost
_REPLY_SECONDS = 2.0  # a process that ends directly after its reply may lose it
# In which local ranks may end by themselves; the second one after an error.
_PATIENCE_SECONDS, _ERROR_PATIENCE_SECONDS = 5.0, 1.0


@dataclass(eq=False)
class Session:
    """The session of one rank, which computes on ``device``."""

    info: RankInfo
    runtime: Runtime
    device: torch.device
    _resources: ExitStack
    metrics: MetricsServer | None = field(default=None, init=False)  # of rank 0, if wanted

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return self.info.rank

    @property
    def cores(self) -> int | None:
        """CPU cores that all ranks share; None if they compute elsewhere."""
        shared = self.info.on_one_node and self.device.type == "cpu"
        return os.cpu_count() if shared else None

    @property
    def farm(self) -> Farm:
        """The session's farm; only rank 0 has it, a worker raises `SessionError`."""
        raise SessionError(f"rank {self.rank} is a worker: only rank 0 hands out tasks")

    def to_host(self, tree: Any) -> Future[Any]:
        """Copy tensors from this rank's device to host memory; as :func:`distinf.gpu.to_host`."""
        return to_host(tree)

    def serve(self) -> None:
        """Serve calls until rank 0 stops this worker; returns at once on rank 0."""

    def close(self, error: BaseException | None = None) -> None:
        """Close: rank 0 stops the workers; a worker serves until it is stopped."""
        self._resources.close()


@dataclass(eq=False)
class WorkerSession(Session):
    """A worker's session."""

    _store: dist.Store | None

    def serve(self) -> None:
        """Serve calls until rank 0 stops this worker; later calls return at once."""
        store, self._store = self._store, None
        if store is not None:
            serve(self.rank, store)

    def close(self, error: BaseException | None = None) -> None:
        """Serve until stopped, then release what this rank holds."""
        with self._resources:
            self.serve()


class DriverSession(Session):
    """Rank 0's session: it hands out tasks and watches the workers.

    ``ranks`` are all ranks, empty in a single process; ``local`` are the workers, if this process
    started them; in ``store`` ranks note why they leave. ``groups`` are the ranks that run a model
    together.
    """

    def __init__(
        self,
        info: RankInfo,
        runtime: Runtime,
        worker: Worker,
        transport: Transport,
        resources: ExitStack,
        ranks: list[Peer],
        local: LocalRanks | None,
        store: dist.Store | None = None,
        groups: GroupSizes | None = None,
    ) -> None:
        super().__init__(info, runtime, worker.device, resources)
        self._store = store
        self._transport = transport
        self._ranks = ranks
        self._local = local
        self._unresponsive: set[int] = set()
        self._error: BaseException | None = None
        several = info.world_size > 1
        replicas = transport if isinstance(transport, Replicas) else None
        # Rank 0 alone is no replica.
        together = groups is not None and groups.diagnostic > 1
        self._replicas = replicas
        self._farm = Farm(
            transport,
            # A worker takes its next input while it computes; this process alone cannot.
            depth=2 if several else 1,
            max_attempts=runtime.max_attempts,
            call_timeout=runtime.call_timeout,
            skip_errors=runtime.on_error == "skip",
            driver_works=runtime.driver_works if several and not together else "never",
            min_workers=runtime.least_workers,
            wait_for_workers=runtime.wait_for_workers,
        )
        # Closed in reverse order.
        resources.callback(self._end_unresponsive)
        resources.callback(self._stop_workers)
        if local is not None:
            local.watch(self.mark_lost)
            resources.callback(local.expect_end)
        if replicas is not None:
            replicas.when_lost, replicas.end = self.mark_lost, self._end
        if several:
            pulse = Pulse(
                transport,
                self._lives,
                runtime.liveness_timeout,
                self.mark_lost,
            )
            self._farm.silent = pulse.silent
            resources.callback(pulse.stop)

    @property
    def farm(self) -> Farm:
        """The session's farm."""
        return self._farm

    def close(self, error: BaseException | None = None) -> None:
        """Stop the workers and release what this rank holds; ``error``: why the session ends.

        Without an error the workers end their tasks first, also those that nobody waits for.
        """
        self._error = error
        try:
            if error is None:
                self._farm.finish()
        except BaseException as interrupted:
            self._error = interrupted
            raise
        finally:
            if self._local is not None:
                well = self._error is None
                self._local.patience = _PATIENCE_SECONDS if well else _ERROR_PATIENCE_SECONDS
            self._resources.close()

    def _stop_workers(self) -> None:
        self._farm.fail(self._error or SessionError("the session is closed"))
        self._transport.close(self._error is not None)

    def _lives(self) -> dict[int, int]:
        """Ranks that must give signs of life, and which of its lives each has."""
        lives = self._farm.lives()
        if self._replicas is None:
            return lives
        beside = dict.fromkeys(self._replicas.beside_driver, 0)
        return beside | {r: n for rank, n in lives.items() for r in self._replicas.group_of(rank)}

    def mark_lost(self, rank: int, reason: str) -> None:
        """Give a lost rank's tasks to others, and kill its process, unless the transport does.

        A stopped process does not end by itself, and its launcher would wait for it. Ranks that run
        a model together with it wait for it in a collective, and are lost with it.
        """
        if self._replicas is None:
            self._farm.mark_lost(rank, reason)
            self._end(rank)
        elif self._store is not None and (failure := why_it_left(self._store, rank)):
            # The first rank of its group tells that as the error of the task, then it leaves, too,
            # unless it waits inside the model: NCCL does not tell it that a rank has left.
            lose = functools.partial(self._lose_group, rank, failure, alone=True)
            self._resources.callback(after(2 * _REPLY_SECONDS, lose).cancel)
        else:
            self._lose_group(rank, reason)

    def _lose_group(self, rank: int, reason: str, alone: bool = False) -> None:
        """Lose all ranks that run a model together with one that is lost, or failed ``alone``."""
        assert self._replicas is not None
        ranks = self._replicas.group_of(rank)
        if ranks[0] != 0:
            own = "" if rank == ranks[0] else f"rank {rank} of its group: "
            if alone:
                self.lose_replica(ranks[0], self._ranks[rank].host, f"on rank {rank}: {reason}")
            else:
                self._farm.mark_lost(ranks[0], f"{own}{reason}")
            for lost in ranks:
                self._end(lost)
            return
        self.lose_prognostic(rank, reason, lambda: self._end_all(ranks[1:]))

    def lose_replica(self, first: int, host: str, error: str) -> None:
        """Lose a replica by an error of one of its ranks, which its task gets."""
        now, failure = time.time(), Failure("the model", "RuntimeError", error, "")
        last = Reply(None, failure, first, host, now, now, unusable="group")
        self._farm.mark_lost(first, f"its group can no longer be used: {error}", last=last)

    def lose_prognostic(self, rank: int, reason: str, end: Callable[[], None]) -> None:
        """End the run, since a rank that runs the prognostic with rank 0 was lost.

        ``end`` kills all of them: rank 0 may wait for them in a collective.
        """
        words = f"rank {rank}, which runs the prognostic with rank 0, was lost: {reason}"
        self._farm.fail(SessionError(words))
        self._resources.callback(after(_STUCK_SECONDS, functools.partial(give_up, words)).cancel)
        end()

    def _end_all(self, ranks: tuple[int, ...]) -> None:
        for lost in ranks:
            if self._local is not None:
                self._local.kill(lost)
            else:
                peers.end_if_here(self._ranks[lost])

    def _end(self, rank: int) -> None:
        """Kill the process of a lost rank, where this rank may."""
        if self._local is not None:
            self._local.kill(rank)
        elif not self._ranks:
            return
        elif lets_survivors_live(self.info, os.environ):
            peers.end_if_here(self._ranks[rank])
        else:
            self._unresponsive.add(rank)

    def _end_unresponsive(self) -> None:
        """Kill lost ranks whose launcher ends all ranks when one is killed."""
        for rank in self._unresponsive:
            peers.end_if_here(self._ranks[rank])


def refuse(info: RankInfo, deadline: float, error: BaseException) -> None:
    """Tell the launcher's other ranks why rank 0 opens no session."""
    with rendezvous.meeting(info, None, deadline) as (store, _):
        peers.refuse(store, str(error), info.world_size)


def join(
    info: RankInfo,
    runtime: Runtime,
    deadline: float,
    local: LocalRanks | None,
    must_match: Mapping[str, Any] | None,
    resources: ExitStack,
    groups: GroupSizes,
) -> Session:
    """Join the other ranks until the deadline, and return this rank's session.

    ``groups`` are the ranks that run a model together. ``local`` are the workers, if this process
    started them. What is opened goes to ``resources``, which the caller closes on an error and the
    session at its end.
    """
    resources.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(runtime.threads)
    process.keep_freed_memory()
    device = process.choose_device(info)
    if info.world_size == 1:
        worker = Worker(0, device, runtime.nonfinite)
        worker.results_stay = runtime.results == "device"
        process.initialize_manager(info, device, None)
        resources.callback(process.end_manager)
        return DriverSession(info, runtime, worker, InProcess(worker), resources, [], None)
    # The driver's diagnostics run on another stream than its prognostic.
    beside = info.rank == 0 and device.type == "cuda"
    lane = Lane(Cuda(device), beside=True) if beside else None
    worker = Worker(info.rank, device, runtime.nonfinite, lane)
    group = find_peers(info, device, deadline, local, must_match)
    resources.enter_context(network.interface_restored())
    bind_network(group, runtime.interface)
    gpus = {peer.rank: peer.gpu for peer in group.peers}
    unusable = functools.partial(_leave_group, info.rank)
    member = GroupMember(info.rank, device, gpus, group.store, unusable)
    worker.join_group = member.join
    rpc = join_group(group, worker, runtime, deadline)
    resources.callback(leave, member)
    if rpc is None:
        return WorkerSession(info, runtime, device, resources, group.store)
    transport: Transport = rpc
    if groups.any:
        transport = Replicas(rpc, groups.groups(info.world_size))
        left = max(10.0, deadline - time.monotonic())
        words = f"the ranks of a group did not find each other in {left:.0f} s"
        guard = after(2 * left, functools.partial(give_up, words))
        try:
            transport.form(member.join, left)
        except BaseException:
            rpc.close(True)
            raise
        finally:
            guard.cancel()
    return DriverSession(
        *(info, runtime, worker, transport, resources, group.peers, local, group.store),
        groups=groups,
    )


@dataclass(frozen=True)
class Group:
    """The ranks of a session that have found each other; their ``store`` is on ``host``."""

    info: RankInfo
    peers: list[Peer]
    store: dist.Store
    host: str


def find_peers(
    info: RankInfo,
    device: torch.device,
    deadline: float,
    local: LocalRanks | None,
    must_match: Mapping[str, Any] | None,
) -> Group:
    """Find the other ranks, and check that they belong together."""
    listener = local.listener if local is not None else None
    with rendezvous.meeting(info, listener, deadline) as (store, host):
        found = peers.gather(
            store,
            info,
            device,
            deadline,
            master="" if info.rank == 0 else host,
            must_match=must_match,
            ended=local.ended if local is not None else dict,
        )
    if info.rank == 0 and (shared := peers.shared_gpus(found)):
        log.warning(shared)
    return Group(info, found, store, host)


def bind_network(group: Group, interface: str | None) -> None:
    """Choose the interface on which this rank listens: loopback where all are on one node."""
    if group.info.on_one_node:
        network.use_interface("lo")
    elif interface is not None:
        network.use_interface(interface)
    elif "TP_SOCKET_IFNAME" not in os.environ:
        at_driver = group.info.rank == 0
        network.use_route(peers.route_to(group.peers, 0) if at_driver else group.host)


def join_group(
    group: Group, worker: Worker, runtime: Runtime, deadline: float
) -> RpcTransport | None:
    """Choose how tensors travel, join the RPC group; return rank 0's transport to the workers."""
    info, store, several = group.info, group.store, runtime.drivers != 1
    choice = choose_carrier(
        runtime.carrier, group.peers, info.rank, store, info.on_one_node, deadline, several
    )
    on_device = choice.carrier == "cuda"
    maps = device_maps(info.rank, group.peers, several) if on_device else {}
    stay = runtime.results == "device"
    worker.results_stay = stay and (on_device or info.rank == 0)
    if info.rank != 0:
        worker.when_unusable = functools.partial(_leave_soon, info.rank)
    left = max(10.0, deadline - time.monotonic())
    process.initialize_manager(info, worker.device, store, left)
    # Before a call that fetches is late, since then its own rank would be lost.
    fetch = min(runtime.liveness_timeout, (runtime.call_timeout or float("inf")) / 2)
    join_rpc(worker, info.world_size, store, maps, left, not info.on_one_node, fetch)
    return RpcTransport(worker, info.world_size, store, choice, stay) if info.rank == 0 else None


def leave(member: GroupMember) -> None:
    """Leave the process groups; a collective that never ends must not keep the process."""
    guard = after(_STUCK_SECONDS, functools.partial(os._exit, 1))
    member.leave()
    process.end_manager()
    guard.cancel()


def give_up(words: str) -> None:
    """End rank 0, which waits in a collective that cannot be taken back."""
    print(f"distinf: error: {words}", file=sys.stderr, flush=True)
    os._exit(1)


def after(seconds: float, work: Callable[[], None]) -> threading.Timer:
    """Call a function in so many seconds, unless the timer is cancelled."""
    timer = threading.Timer(seconds, work)
    timer.daemon = True
    timer.start()
    return timer


def _leave_group(rank: int, reason: str) -> None:
    """End a worker whose group is broken; rank 0 reports it with the error of the prognostic."""
    if rank != 0:
        _leave_soon(rank, reason, "its group")


def _leave_soon(rank: int, reason: str, what: str = "its GPU") -> None:
    """End this worker's process after its reply is sent: every further call would fail.

    The status is 0, since some launchers end all ranks when one fails; rank 0 reports the error.
    """
    print(
        f"distinf: rank {rank} on {socket.gethostname()} leaves, {what} can no longer be "
        f"used: {reason}",
        file=sys.stderr,
        flush=True,
    )
    after(_REPLY_SECONDS, functools.partial(os._exit, 0))
