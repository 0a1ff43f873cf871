"""One model over several ranks: the first rank of a group leads, the others do what it does.

The first rank sends each call to the others inside the group: its words over one process group, its
tensors over that of the model. Each rank notes in a store how a call ended. That is read only
after an error: a collective that a rank has left cannot be taken back, so the ranks find out
whether all of them left it.
"""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from distinf.background import use_compute_threads
from distinf.errors import SessionError
from distinf.seeds import generators, set_generators
from distinf.tensors import map_leaves, map_tensors

# After an error of one rank, the others must have ended the call in this time.
_AGREE_SECONDS = 10.0
_STOP_SECONDS = 2.0


@dataclass(frozen=True, eq=False)
class RankGroup:
    """Ranks that run models together, as one of them sees it.

    Attributes
    ----------
    ranks : tuple[int, ...]
        The ranks, as the session numbers them; the first one leads.
    rank : int
        This rank.
    words, model : dist.ProcessGroup
        Groups of these ranks: for what the leader sends, and for tensors and the models' own
        collectives.
    store : dist.Store
        Where each rank notes how its last call ended.
    device : torch.device
        Of this rank.
    pack : Callable[[Any], bytes]
        Pickles what the leader sends.
    """

    ranks: tuple[int, ...]
    rank: int
    words: Any
    model: Any
    store: dist.Store
    device: torch.device
    pack: Callable[[Any], bytes] = pickle.dumps

    @property
    def leader(self) -> int:
        """The first rank."""
        return self.ranks[0]

    def send(self, call: int, words: Any, tensors: list[torch.Tensor]) -> None:
        """Send a call from the leader to the others; call 0 is the last one."""
        shapes = [(tuple(x.shape), x.dtype) for x in tensors]
        packed = self.pack((words, shapes))
        dist.broadcast_object_list([(call, packed)], group=self.words, group_src=0)
        for x in tensors:
            dist.broadcast(x.contiguous(), group=self.model, group_src=0)

    def receive(self) -> tuple[int, bytes]:
        """Receive the words of a call; raises `RuntimeError` if the leader is gone."""
        received: list[Any] = [None]
        dist.broadcast_object_list(received, group=self.words, group_src=0)
        call, packed = received[0]
        return call, packed

    def unpack(self, packed: bytes) -> tuple[Any, list[torch.Tensor]]:
        """Return the words of a call, and receive its tensors."""
        words, shapes = pickle.loads(packed)
        tensors = [torch.empty(shape, dtype=dtype, device=self.device) for shape, dtype in shapes]
        for x in tensors:
            dist.broadcast(x, group=self.model, group_src=0)
        return words, tensors

    def settle(self) -> None:
        """Wait until this rank's GPU has computed what it was given, with its collectives."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def note(self, call: int, failure: str = "", left: bool = False) -> None:
        """Note how a call ended on this rank; ``left``: this rank ends now."""
        where = f"{failure} ({socket.gethostname()})" if failure else ""
        self.store.set(_key(self.rank), pickle.dumps((call, where, left)))

    def notes(
        self, call: int, ranks: tuple[int, ...], seconds: float = _AGREE_SECONDS
    ) -> dict[int, tuple[str, bool]]:
        """Wait until ranks have ended a call; return their notes, not of those that have not.

        It ends with the first one that failed, too.
        """
        found: dict[int, tuple[str, bool]] = {}
        deadline = time.monotonic() + seconds
        while len(found) < len(ranks) and time.monotonic() < deadline:
            for rank in ranks:
                key = _key(rank)
                if rank not in found and self.store.check([key]):
                    number, failure, left = pickle.loads(self.store.get(key))
                    if number >= call:
                        found[rank] = failure, left
            if any(left for _, left in found.values()):
                break
            time.sleep(0.02)
        return found


def why_it_left(store: dist.Store, rank: int) -> str:
    """Return the error with which a rank left its group by itself; empty if it did not."""
    if not store.check([_key(rank)]):
        return ""
    _, failure, left = pickle.loads(store.get(_key(rank)))
    return failure if left else ""


def _key(rank: int) -> str:
    return f"group call/{rank}"


class Leader:
    """The first rank of a group: makes each call together with the others.

    ``leave`` is called with the reason when the group can no longer be used.
    """

    def __init__(self, group: RankGroup, leave: Callable[[str], None]) -> None:
        self.group = group
        self.broken = False
        self._when_broken = leave
        self._lock = threading.RLock()
        self._calls, self._models = itertools.count(1), itertools.count()
        self._dropped: list[int] = []

    def build(self, factory: Callable[..., Any]) -> GroupModel:
        """Construct a model on all ranks: ``factory(group=...)``."""
        number = next(self._models)
        make = partial(_build, factory, self.group)
        own = self.together(("build", number, factory), (), make, wait=True)
        model = GroupModel(self, number, own)
        weakref.finalize(model, self._dropped.append, number)
        return model

    def together(
        self, words: Any, args: tuple[Any, ...], run: Callable[..., Any], wait: bool = False
    ) -> Any:
        """Let the others do what ``words`` say, with these arguments, while this rank runs it.

        ``wait``: until the others have done it as well, and raise their errors.
        """
        tensors: list[torch.Tensor] = []

        def taken(x: torch.Tensor) -> _Place:
            tensors.append(x.to(self.group.device))
            return _Place(len(tensors) - 1)

        with self._lock:
            call = next(self._calls)
            sent = map_tensors(args, taken)
            dropped, self._dropped[:] = list(self._dropped), []
            state = generators(self.group.device)
            try:
                self.group.send(call, (words, sent, state, dropped), tensors)
                result = run(*args)
                self.group.settle()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self.group.note(call, _told(error))
                raise self._judged(call, error) from error
            self.group.note(call)
            if wait:
                self._wait(call)
            return result

    def _wait(self, call: int) -> None:
        """Wait until the others have ended a call, as long as they live; raise their errors."""
        others = self.group.ranks[1:]
        while len(notes := self.group.notes(call, others)) < len(others):
            if any(left for _, left in notes.values()):
                break
        for rank, (failure, left) in notes.items():
            if left:
                self._leave(f"rank {rank}, which runs the model with it, failed")
            if failure:
                raise RuntimeError(f"on rank {rank}: {failure}")

    def _judged(self, call: int, error: BaseException) -> BaseException:
        """Return what to raise after an error: it may come from another rank."""
        others = self.group.ranks[1:]
        notes = self.group.notes(call, others)
        for rank, (failure, left) in notes.items():
            if left:
                self._leave(f"rank {rank}, which runs the model with it, failed")
                return RuntimeError(f"on rank {rank}: {failure}")
        if missing := [rank for rank in others if rank not in notes]:
            reason = f"rank {missing[0]}, which runs the model with it, does not answer"
            self._leave(reason)
            if _of_a_collective(error):
                return SessionError(f"{reason} ({_told(error)})")
        return error

    def _leave(self, reason: str) -> None:
        self.broken = True
        self._when_broken(reason)

    def stop(self) -> None:
        """Let the others follow no more; a rank that is gone is not waited for."""
        ending = threading.Thread(target=self._stop, daemon=True)
        ending.start()
        ending.join(_STOP_SECONDS)

    def _stop(self) -> None:
        try:
            with self._lock:
                self.group.send(0, None, [])
        except RuntimeError:
            pass  # the others see that, too


@dataclass(frozen=True)
class _Place:
    """Takes the place of a tensor in the words of a call."""

    index: int


class GroupModel:
    """A model on all ranks of a group, on its first one; used like the model itself.

    Calls of ``__call__``, ``forward`` and ``set_rng``, and the steps of ``create_iterator``, run on
    all ranks. All else is asked of the first rank's own part.
    """

    def __init__(self, leader: Leader, number: int, own: Any) -> None:
        self._leader, self._number, self.own = leader, number, own

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.own, name)
        return self._set_rng if name == "set_rng" else found

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "own" and not name.startswith("_"):
            raise AttributeError(
                f"{name}: a model over several ranks gets it in its factory, which runs on each"
            )
        super().__setattr__(name, value)

    @property
    def label(self) -> str:
        """What errors call it: as the model itself."""
        return getattr(self.own, "label", None) or type(self.own).__name__

    def _set_rng(self, **options: Any) -> None:
        words = ("set_rng", self._number)
        self._leader.together(words, (options,), lambda given: self.own.set_rng(**given))

    def __str__(self) -> str:
        return str(self.own)

    def to(self, device: Any) -> GroupModel:
        """Stay where it is: each rank has moved its part to its device."""
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model on all ranks; raises as the model does on the first one."""
        call = partial(_call, self.own)
        return self._leader.together(("call", self._number), (args, kwargs), call)

    forward = __call__

    def create_iterator(self, x: torch.Tensor, coords: Any) -> Iterator[Any]:
        """Step a prognostic on all ranks; the iterator that was made last is the one that steps."""
        steps = self._leader.together(
            ("iterate", self._number), (x, coords), self.own.create_iterator
        )
        self._steps = steps
        while True:
            if steps is not self._steps:
                raise RuntimeError("a later iterator of this model was made")
            try:
                yield self._leader.together(("next", self._number), (), steps.__next__)
            except StopIteration:
                return


@dataclass(frozen=True)
class Grouped:
    """A factory of a model over the ranks of a group, called on the group's first rank.

    ``factory`` is called on every rank with ``group``, the process group.
    """

    factory: Callable[..., Any]

    @property
    def __name__(self) -> str:
        """What errors call it: as the factory itself."""
        return getattr(self.factory, "__name__", type(self.factory).__name__)

    def __call__(self) -> GroupModel:
        """Construct the model on all ranks; raises `SessionError` outside a group."""
        if _leader is None:
            raise SessionError("this rank leads no group of ranks")
        return _leader.build(self.factory)


_leader: Leader | None = None


def lead(group: RankGroup, leave: Callable[[str], None]) -> Leader:
    """Make this process the leader of a group; `Grouped` factories called here find it."""
    global _leader
    _leader = Leader(group, leave)
    return _leader


def group_is_broken() -> bool:
    """Whether this process leads a group that can no longer be used."""
    return _leader is not None and _leader.broken


def end_leading() -> None:
    """Let the ranks that follow this one go."""
    global _leader
    if _leader is not None:
        _leader.stop()
    _leader = None


def follow(group: RankGroup) -> None:
    """Do what the leader does, until it says so or is gone."""
    use_compute_threads()
    if group.device.type == "cuda":
        torch.cuda.set_device(group.device)  # that of this thread
    follower = _Follower(group)
    while True:
        try:
            call, packed = group.receive()
        except RuntimeError:
            return
        if call == 0:
            return
        try:
            follower.do(packed)
            group.settle()
        except BaseException as error:
            _report(group, call, error)
        else:
            group.note(call)


class _Follower:
    """The models of a rank that does what its leader does."""

    def __init__(self, group: RankGroup) -> None:
        self._group = group
        self._models: dict[int, Any] = {}
        self._steps: dict[int, Iterator[Any]] = {}

    def do(self, packed: bytes) -> None:
        """Make one call; raises what the model raises."""
        ((what, number, *more), sent, state, dropped), tensors = self._group.unpack(packed)
        args = map_leaves(sent, partial(_filled, tensors))
        for old in dropped:
            self._models.pop(old, None)
            self._steps.pop(old, None)
        set_generators(state, self._group.device)
        with torch.inference_mode():
            if what == "build":
                self._models[number] = _build(more[0], self._group)
            elif what == "iterate":
                self._steps[number] = self._models[number].create_iterator(*args)
            elif what == "next":
                self._step(number)
            elif what == "set_rng":
                self._models[number].set_rng(**args[0])
            else:
                _call(self._models[number], *args)

    def _step(self, number: int) -> None:
        """Step a prognostic; raises again in each step after an error, not as at the end."""
        try:
            next(self._steps[number], None)
        except BaseException as error:
            self._steps[number] = map(_raise, itertools.repeat(error))
            raise


def _raise(error: BaseException) -> NoReturn:
    raise error


def _report(group: RankGroup, call: int, error: BaseException) -> None:
    """Note an error. If the leader does not end the call as well, it waits for this rank: end."""
    failure = _told(error)
    group.note(call, failure)
    if group.leader in group.notes(call, (group.leader,)):
        return
    traceback.print_exception(error)
    print(
        f"distinf: rank {group.rank} leaves, since rank {group.leader} waits for it in a model",
        file=sys.stderr,
        flush=True,
    )
    group.note(call, failure, left=True)
    # Its connections end with it, which raises an error where the leader waits.
    os._exit(0)  # some launchers end all ranks when one fails; rank 0 reports the error


def _build(factory: Callable[..., Any], group: RankGroup) -> Any:
    model = factory(group=group.model)
    if isinstance(model, torch.nn.Module):
        model.eval()
    if callable(getattr(model, "to", None)):
        model = model.to(group.device)
    return model


def _call(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from distinf.transport.worker import forward_of

    function = forward_of(model) if hasattr(model, "forward") else model
    return function(*args, **kwargs)


def _filled(tensors: list[torch.Tensor], leaf: Any) -> Any:
    return tensors[leaf.index] if isinstance(leaf, _Place) else leaf


def _of_a_collective(error: BaseException) -> bool:
    """Whether this is what a collective raises without the other ranks."""
    of_gloo = type(error) is RuntimeError and "gloo" in str(error)
    return of_gloo or isinstance(error, dist.DistError)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
