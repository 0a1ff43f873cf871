"""Ranks find each other, and part again."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from distinf.errors import ConfigError, SessionError
from distinf.options import Runtime
from distinf.session import launcher, network
from distinf.session.heap import keep_freed_memory
from distinf.session.local_ranks import OwnRanks, listen_on_loopback

if TYPE_CHECKING:
    import torch.distributed as dist

    from distinf.departures import Departures
    from distinf.farm import Farm, Pulse
    from distinf.session.peers import Peer
    from distinf.streams import Copies

__all__ = ["Runtime", "close_session", "current_session", "open_session", "session"]


class Session:
    """The time between the ranks finding each other and parting; made by `open_session`."""

    def __init__(
        self,
        runtime: Runtime,
        nproc: int | None,
        meanwhile: Callable[[], None] | None,
        alike: Mapping[str, Any] | None,
    ) -> None:
        self._deadline = time.monotonic() + runtime.start_timeout
        nproc = _own_nproc(runtime, nproc)
        place = launcher.find_place()
        launcher.leave_if_superfluous(place)
        _check_launch(runtime, place, nproc)
        self._alike = alike
        self._own: OwnRanks | None = None
        self._store: dist.Store | None = None
        self._transport: Any = None
        self._socket: socket.socket | None = None
        self._pulse: Pulse | None = None
        self._departures: Departures | None = None
        self._copies: Copies | None = None
        self._peers: list[Peer] = []
        self._silent: set[int] = set()
        self.runtime = runtime
        if place is None and nproc is not None and nproc > 1:
            # Workers import while the driver does.
            self._socket = listen_on_loopback()
            port = self._socket.getsockname()[1]
            self._own = OwnRanks(nproc, port, _serve, (runtime,))
            place = launcher.Place("distinf", 0, nproc, 0, nproc)
        self.place = place or launcher.Place("none", 0, 1, 0, 1)
        self.rank = self.place.rank
        self._farm: Farm | None = None
        try:
            self._open(meanwhile)
        except BaseException:
            self._end_own(patience=0.0)
            raise

    @property
    def farm(self) -> Farm:
        """The session's dispatcher; only the driver has it."""
        if self._farm is None:
            raise SessionError(f"rank {self.rank} is a worker: only rank 0 hands out tasks")
        return self._farm

    def to_host(self, tree: Any) -> Future[Any]:
        """Copy tensors of this rank's device to host memory, beside what the device computes.

        Parameters
        ----------
        tree : Any
            Nested containers; their tensors must not be written to until the future is done, except
            by what this thread launches on its current stream before.

        Returns
        -------
        Future
            The copy, complete. On the CPU it is the tensors themselves.
        """
        from distinf.departures import Departures
        from distinf.gpu import Cuda
        from distinf.streams import Copies

        copied: Future[Any] = Future()
        if self.device.type != "cuda":
            copied.set_result(tree)
            return copied
        if self._departures is None or self._copies is None:
            self._departures, self._copies = Departures(), Copies(Cuda(self.device))
        leaving = self._copies.to_host(tree)
        self._departures.depart(leaving.wait, copied.set_result, copied.set_exception)
        return copied

    def _open(self, meanwhile: Callable[[], None] | None) -> None:
        refusal: BaseException | None = None
        if meanwhile is not None and self.rank == 0:
            try:
                meanwhile()
            except BaseException as error:
                if self._own is not None or self.place.world_size == 1:
                    raise
                refusal = error  # the launcher's other ranks wait to hear of it

        import torch

        from distinf.session import manager
        from distinf.session.meet import meet
        from distinf.transport import InProcess, Worker

        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self.runtime.threads)
        keep_freed_memory()
        self.device = manager.device_of(self.place)
        worker = Worker(self.rank, self.device, self.runtime.nonfinite, self._own_lane())
        if self.place.world_size == 1:
            worker.results_stay = self.runtime.results == "device"
            manager.initialize_manager(self.place, self.device, None)
            self._transport = InProcess(worker)
        else:
            listener, self._socket = self._socket, None
            died = self._own.died if self._own is not None else dict
            self._store, self._peers, self._transport = meet(
                self.place,
                self.runtime,
                worker,
                self._deadline,
                listener,
                refusal,
                self._alike,
                died,
            )
        if self.rank == 0:
            from distinf.farm import DriverWorks, Farm, Pulse

            farmed = self.place.world_size > 1
            self._farm = Farm(
                self._transport,
                # A worker on its own device can take its next input while it computes; this
                # process cannot.
                depth=1 if self.place.world_size == 1 else 2,
                max_attempts=self.runtime.max_attempts,
                call_timeout=self.runtime.call_timeout,
                skip_errors=self.runtime.on_error == "skip",
                driver=DriverWorks(
                    InProcess(worker), self.runtime.driver_works, self.runtime.call_timeout
                )
                if farmed
                else None,
            )
            if farmed:
                self._pulse = Pulse(
                    self._transport,
                    lambda: tuple(rank for rank in self.farm.workers if rank != 0),
                    self.runtime.liveness_timeout,
                    self._lose,
                )
            if self._own is not None:
                self._own.watch(self._lose)

    def _own_lane(self) -> Any:
        """Return the driver's own stream for diagnostics, beside that of its prognostic."""
        from distinf.gpu import Cuda
        from distinf.streams import Lane

        beside = self.rank == 0 and self.place.world_size > 1 and self.device.type == "cuda"
        return Lane(Cuda(self.device), beside=True) if beside else None

    def _lose(self, rank: int, reason: str) -> None:
        from distinf.session.peers import end_if_here

        self.farm.lose(rank, reason)
        # One that is stopped does not end by itself, and its launcher would wait for it.
        if self._own is not None:
            self._own.kill(rank)
        elif launcher.lets_survivors_live(self.place, os.environ):
            end_if_here(self._peers[rank])
        else:
            self._silent.add(rank)

    def serve(self) -> None:
        """Serve calls until the driver parts; workers only."""
        from distinf.transport import rpc

        if self._store is not None:
            store, self._store = self._store, None
            rpc.serve(self.rank, store)

    def close(self, error: BaseException | None = None) -> None:
        """Part: the driver lets the workers go, a worker serves until it is let go."""
        import torch

        from distinf.session import manager
        from distinf.session.peers import end_if_here

        try:
            if self.rank != 0:
                self.serve()
            elif self._transport is not None:
                if self._pulse is not None:
                    self._pulse.stop()
                if self._own is not None:
                    self._own.expect_end()
                self.farm.fail(error or SessionError("the session is closed"))
                self._transport.close(error is not None)
        finally:
            for rank in self._silent:  # not before: the launcher then ends all ranks
                end_if_here(self._peers[rank])
            if self._departures is not None:
                self._departures.close()
            self._end_own(patience=1.0 if error is not None else 5.0)
            manager.end_manager()
            torch.set_num_threads(self._threads_before)

    def _end_own(self, patience: float) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._own is not None:
            self._own.stop(patience)


def _own_nproc(runtime: Runtime, nproc: int | None) -> int | None:
    """Ranks to start where no launcher did, however they were asked for; None: none."""
    if None not in (nproc, runtime.nproc) and nproc != runtime.nproc:
        raise ConfigError(
            f"session(nproc={nproc}) and Runtime(nproc={runtime.nproc}) contradict each other: "
            "give one of them"
        )
    return runtime.nproc if nproc is None else nproc


def _check_launch(runtime: Runtime, place: launcher.Place | None, nproc: int | None) -> None:
    """Refuse what this rank can tell to be wrong by itself, before torch is imported."""
    ranks = place.world_size if place is not None else nproc or 1
    if runtime.expect_ranks not in (None, ranks):
        launcher = place.launcher if place is not None else "no launcher"
        raise ConfigError(
            f"runtime.expect_ranks={runtime.expect_ranks}, but there are {ranks} rank(s) "
            f"({launcher} started them): start the run with that many, or change the key"
        )
    if runtime.interface is not None:
        network.check_interface(runtime.interface)


_current: Session | None = None


def open_session(
    runtime: Runtime | None = None,
    nproc: int | None = None,
    meanwhile: Callable[[], None] | None = None,
    alike: Mapping[str, Any] | None = None,
) -> Session:
    """Open a session on this rank; every rank calls it at the same time.

    Parameters
    ----------
    runtime : Runtime | None, optional
        Options, by default `Runtime()`.
    nproc : int | None, optional
        Ranks to start on this machine when no launcher started any, by default None:
        ``runtime.nproc``, and where that is None, too, none.
    meanwhile, alike : Callable[[], None] | None, Mapping[str, Any] | None, optional
        As in :func:`session`.

    Returns
    -------
    Session
        The open session.

    Raises
    ------
    ConfigError
        If ``nproc`` and ``runtime.nproc`` differ.
    SessionError
        If one is open already, or the ranks did not find each other in time.
    """
    global _current
    if _current is not None:
        raise SessionError("a session is open already on this rank")
    _current = Session(runtime or Runtime(), nproc, meanwhile, alike)
    return _current


def current_session() -> Session:
    """Return the session that is open on this rank.

    Raises
    ------
    SessionError
        If none is.
    """
    if _current is None:
        raise SessionError(
            "no session is open: use `with session() as rank:` or DistributedInference.initialize()"
        )
    return _current


def close_session(error: BaseException | None = None) -> None:
    """Close this rank's session, if one is open."""
    global _current
    if _current is None:
        return
    try:
        _current.close(error)
    finally:
        _current = None


@contextmanager
def session(
    runtime: Runtime | None = None,
    nproc: int | None = None,
    meanwhile: Callable[[], None] | None = None,
    alike: Mapping[str, Any] | None = None,
) -> Iterator[int]:
    """Open a session; workers serve inside until the driver's block ends.

    Parameters
    ----------
    runtime : Runtime | None, optional
        Options, by default `Runtime()`.
    nproc : int | None, optional
        Ranks to start on this machine when no launcher started any, by default None:
        ``runtime.nproc``, and where that is None, too, none, so that everything runs in this
        process. Those ranks import the calling script afresh, which therefore needs
        ``if __name__ == "__main__":``.
    meanwhile : Callable[[], None] | None, optional
        Called on the driver while the other ranks start, for checks that may end the run: what
        it raises ends all ranks.
    alike : Mapping[str, Any] | None, optional
        What must be the same on every rank that gives it, such as settings; by default nothing.

    Yields
    ------
    int
        This process's rank. On a worker the block begins when the driver's has ended.

    Raises
    ------
    ConfigError
        If ``nproc`` and ``runtime.nproc`` differ.
    SessionError
        If the ranks did not find each other in time, or the driver is gone.
    """
    opened = open_session(runtime, nproc, meanwhile, alike)
    try:
        if opened.rank != 0:
            opened.serve()
        yield opened.rank
    except BaseException as error:
        close_session(error)
        raise
    close_session()


def _serve(runtime: Runtime) -> None:
    """Do what a rank that the driver started does."""
    with session(runtime):
        pass
