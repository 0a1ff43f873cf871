"""A model over several ranks on Ray: the first rank of a group starts the others as its actors.

Ray reserves a placement group for them, and ends an actor with the process that started it. So a
replica is one actor to the driver: when Ray starts its first rank again, that starts the others.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from distinf.background import in_background
from distinf.errors import SessionError
from distinf.session import network, process, rendezvous
from distinf.session.groups import GroupMember
from distinf.session.launcher import RankInfo
from distinf.transport import leave_soon, tell_left, why_it_left, words_of

log = logging.getLogger("distinf")

_LOOK_SECONDS = 0.5
_LEAVE_SECONDS = 4.0  # in which the first rank tells the error of one that left by itself
_TELL_SECONDS = 2.0  # in which the driver hears of it
_END_SECONDS = 10.0
_WATCH = "distinf-followers"


@dataclass(frozen=True)
class RayGroup:
    """Ranks of a group on Ray, of which the first one starts the others.

    ``options`` are those of the others' actors: what they reserve, and where. ``prepare`` sets up
    a process and returns the device on which it computes. The timeouts are in seconds.
    """

    ranks: tuple[int, ...]
    options: Mapping[str, Any]
    prepare: Callable[[], torch.device]
    start_timeout: float
    liveness_timeout: float


@dataclass(frozen=True)
class _Meeting:
    """Where the ranks of a group meet."""

    ranks: tuple[int, ...]
    gpus: Mapping[int, str]
    host: str
    port: int
    seconds: float


class _Lost(SessionError):
    """A rank was lost, so another attempt may go well."""


class Follower:
    """A rank that does what the first one does: what runs in the process of its actor."""

    def __init__(self, prepare: Callable[[], torch.device]) -> None:
        self._device = prepare()

    @ray.method(concurrency_group="signs")
    def where(self) -> tuple[str, str]:
        """Return the address of its node, and its GPU."""
        return _where(self._device)

    @ray.method(concurrency_group="signs")
    def ping(self) -> None:
        """Answer, also while a model computes."""

    @ray.method(concurrency_group="follow")
    def follow(self, meeting: _Meeting, rank: int) -> None:
        """Join the group and do what its first rank does, until that is gone."""
        deadline = time.monotonic() + meeting.seconds
        _listen_towards(meeting.host)
        store = rendezvous.join_own(_info(meeting, rank), meeting.host, meeting.port, deadline)
        _join(meeting, rank, self._device, store, lambda reason: None).follow()


class Followers:
    """The other ranks of a group, for its first one, which starts them."""

    def __init__(self, group: RayGroup) -> None:
        self._group = group
        declare: Any = ray.remote(
            **group.options, max_restarts=0, concurrency_groups={"follow": 1, "signs": 2}
        )
        actor = declare(Follower)
        self._actors = {rank: actor.remote(group.prepare) for rank in group.ranks[1:]}
        self._following: dict[Any, int] = {}
        self._closed = threading.Event()
        self._watching: Future[None] | None = None

    def form(
        self,
        device: torch.device,
        unusable: Callable[[str], None],
        lost: Callable[[int, str, bool], None],
    ) -> GroupMember:
        """Form the group, and watch it from then on.

        ``unusable`` is as of `GroupMember`. ``lost`` is called with the first rank that ends or
        gives no sign of life, why, and whether it has left by an error. Raises `SessionError` if
        a rank cannot start, and a `_Lost` if one is lost before or does not come in time.
        """
        group, seconds = self._group, self._group.start_timeout
        deadline = time.monotonic() + seconds
        first, *others = group.ranks
        try:
            asked = [self._actors[rank].where.remote() for rank in others]
            found = dict(zip(others, ray.get(asked, timeout=seconds), strict=True))
        except GetTimeoutError:
            raise _Lost(
                f"ranks {others}, which run a model with rank {first}, are not there in "
                f"{seconds:g} s (runtime.start_timeout): each asks Ray for the resources of a "
                "worker (runtime.resources)"
            ) from None
        except RayActorError as error:
            kind = SessionError if error.actor_init_failed else _Lost
            why = f"a rank that runs a model with rank {first} did not start"
            raise kind(f"{why}: {words_of(error)}") from error
        found[first] = _where(device)
        here, far = found[first][0], {address for address, _ in found.values()}
        far -= {here}
        host = here if far else network.LOOPBACK
        _listen_towards(min(far, default=network.LOOPBACK))
        _say_what_is_shared(found)
        store, port = rendezvous.serve_own(host, deadline)
        gpus = {rank: gpu for rank, (_, gpu) in found.items()}
        meeting = _Meeting(group.ranks, gpus, host, port, seconds)
        for rank in others:
            self._following[self._actors[rank].follow.remote(meeting, rank)] = rank
        self._watching = in_background(lambda: self._watch(store, lost), _WATCH)
        try:
            return _join(meeting, first, device, store, unusable)
        except (SessionError, RuntimeError) as error:
            if (gone := self._look()) is not None:
                raise _Lost(f"rank {gone[0]}: {gone[1]}") from error
            raise

    def _watch(self, store: dist.Store, lost: Callable[[int, str, bool], None]) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            if (found := self._look()) is None:
                continue
            rank, reason = found
            # The first rank tells that as the error of the task.
            failure = why_it_left(store, rank)
            if not self._closed.wait(_LEAVE_SECONDS if failure else 0):
                lost(rank, failure or reason, bool(failure))
            return

    def _look(self) -> tuple[int, str] | None:
        """Find a rank that has ended or gives no sign of life, and why."""
        seconds = self._group.liveness_timeout
        signs = {actor.ping.remote(): rank for rank, actor in self._actors.items()}
        answered, silent = ray.wait(list(signs), num_returns=len(signs), timeout=seconds)
        ended = ray.wait(list(self._following), timeout=0)[0] if self._following else []
        for asked in (*answered, *ended):
            try:
                ray.get(asked)
            except RayError as error:
                return (signs | self._following)[asked], words_of(error)
        for asked in silent:
            return signs[asked], f"it has given no sign of life for {seconds:g} s"
        return None

    def end(self) -> None:
        """Kill the other ranks; a raylet that does not answer is not waited for."""
        self._closed.set()
        ending = [in_background(self._kill, "distinf-kill")]
        # No thread may use Ray when it is shut down.
        if self._watching is not None and threading.current_thread().name != _WATCH:
            ending.append(self._watching)
        wait(ending, _END_SECONDS)

    def _kill(self) -> None:
        for actor in self._actors.values():
            with contextlib.suppress(RayError, RuntimeError):
                ray.kill(actor)


def begin_replica(group: RayGroup) -> torch.device:
    """Start a replica, in the process of its first rank; return the device of that."""
    followers = Followers(group)  # which import while this process does
    device, first = group.prepare(), group.ranks[0]

    def lost(rank: int, reason: str, left: bool) -> None:
        if left:  # by an error, which the driver gives to the task
            tell_left(f"on rank {rank}: {reason}")
            time.sleep(_TELL_SECONDS)
        _end_replica(first, f"rank {rank} of its group was lost: {reason}")

    try:
        followers.form(device, lambda reason: _leave(first, reason), lost)
    except _Lost as error:
        _end_replica(first, str(error))
    return device


def _end_replica(first: int, reason: str) -> None:
    """End the first rank, so that Ray starts the replica again."""
    _tell(f"rank {first} ends, since {reason}")
    os._exit(1)


def _leave(first: int, reason: str) -> None:
    """End the first rank after its reply."""
    _tell(f"rank {first} leaves, its group can no longer be used: {reason}")
    leave_soon(reason)


def _tell(words: str) -> None:
    print(f"distinf: {words}", file=sys.stderr, flush=True)


def _where(device: torch.device) -> tuple[str, str]:
    on_gpu = device.type == "cuda"
    uuid = str(torch.cuda.get_device_properties(device).uuid) if on_gpu else ""
    return str(ray.util.get_node_ip_address()), uuid


def _listen_towards(host: str) -> None:
    """Listen on the way to another rank: loopback where all are on one node."""
    if host == network.LOOPBACK:
        network.use_interface("lo")
    elif "GLOO_SOCKET_IFNAME" not in os.environ:
        network.use_route(host)


def _say_what_is_shared(found: Mapping[int, tuple[str, str]]) -> None:
    """Warn where ranks of a group compute on one GPU: each has only a part of the memory then."""
    gpus = Counter(gpu for _, gpu in found.values() if gpu)
    for gpu in [gpu for gpu, number in gpus.items() if number > 1]:
        ranks = ", ".join(str(rank) for rank, (_, own) in sorted(found.items()) if own == gpu)
        log.warning(
            "ranks %s run a model together, and on one GPU: Ray knows nothing of a GPU that rank 0 "
            "has not reserved (ray job submit --entrypoint-num-gpus 1)",
            ranks,
        )


def _info(meeting: _Meeting, rank: int) -> RankInfo:
    size = len(meeting.ranks)
    here = size if meeting.host == network.LOOPBACK else 1
    return RankInfo("ray", meeting.ranks.index(rank), size, 0, here)


def _join(
    meeting: _Meeting,
    rank: int,
    device: torch.device,
    store: dist.Store,
    unusable: Callable[[str], None],
) -> GroupMember:
    process.initialize_manager(_info(meeting, rank), device, store, meeting.seconds)
    first = meeting.ranks[0]
    # A class of the application's script has come by value.
    pack = cloudpickle.dumps
    member = GroupMember(rank, device, meeting.gpus, store, unusable, first, pack)
    member.join(*meeting.ranks)
    return member
