"""Open and close this rank's session. Imports torch only when the ranks join."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from distinf.errors import ConfigError, SessionError
from distinf.options import GroupSizes, Runtime
from distinf.session import launcher, network
from distinf.session.launcher import RankInfo
from distinf.session.local_ranks import LocalRanks

if TYPE_CHECKING:
    from distinf.report import MetricsServer
    from distinf.session.roles import Session

_current: Session | None = None


@contextmanager
def session(
    runtime: Runtime | None = None,
    nproc: int | None = None,
    preflight: Callable[[], None] | None = None,
    must_match: Mapping[str, Any] | None = None,
    groups: GroupSizes | None = None,
) -> Iterator[int]:
    """Open a session; every rank runs this, and workers serve inside until rank 0's block ends.

    Parameters
    ----------
    runtime : Runtime | None, optional
        Options, by default `Runtime()`.
    nproc : int | None, optional
        Short for ``Runtime(nproc=...)``: ranks to start on this machine when no launcher started
        any, by default None: none, so that everything runs in this process. Those ranks import the
        calling script again, which therefore needs ``if __name__ == "__main__":``.
    preflight : Callable[[], None] | None, optional
        Checks that rank 0 calls while the other ranks start; an error in it ends all ranks.
    must_match : Mapping[str, Any] | None, optional
        Settings that must be equal on all ranks that give any, by default None.
    groups : GroupSizes | None, optional
        How many ranks run a model together, by default None: each runs its own.

    Yields
    ------
    int
        This process's rank. A worker's block begins when that of rank 0 has ended. Tasks that run
        then end first, also those that nobody waits for.

    Raises
    ------
    ConfigError
        If ``nproc`` and ``runtime.nproc`` differ, or settings of the ranks do, or the ranks cannot
        be divided into ``groups``.
    SessionError
        If the ranks did not find each other in time, rank 0 has ended, or a session is open
        already.
    """
    opened = open_session(runtime, nproc, preflight, must_match, groups)
    try:
        opened.serve()
        yield opened.rank
    except BaseException as error:
        close_session(error)
        raise
    close_session()


def open_session(
    runtime: Runtime | None = None,
    nproc: int | None = None,
    preflight: Callable[[], None] | None = None,
    must_match: Mapping[str, Any] | None = None,
    groups: GroupSizes | None = None,
) -> Session:
    """Open a session without a ``with`` block; arguments and errors as in :func:`session`."""
    global _current
    if _current is not None:
        raise SessionError("a session is open already on this rank")
    resources = ExitStack()
    try:
        runtime = _with_nproc(runtime or Runtime(), nproc)
        _current = _open(runtime, preflight, must_match, resources, groups or GroupSizes())
    except BaseException:
        resources.close()
        raise
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
    """Close this rank's session, if one is open; ``error``: why it ends."""
    global _current
    if _current is None:
        return
    try:
        _current.close(error)
    finally:
        _current = None


def _with_nproc(runtime: Runtime, nproc: int | None) -> Runtime:
    if nproc is None or runtime.engine == "ray":  # which starts the workers
        return runtime
    if runtime.nproc not in (None, nproc):
        raise ConfigError(
            f"session(nproc={nproc}) and Runtime(nproc={runtime.nproc}) contradict each other: "
            "give one of them"
        )
    options: Any = runtime  # mypy does not see that it is a dataclass
    both: Runtime = dataclasses.replace(options, nproc=nproc)
    return both


def _open(
    runtime: Runtime,
    preflight: Callable[[], None] | None,
    must_match: Mapping[str, Any] | None,
    resources: ExitStack,
    groups: GroupSizes,
) -> Session:
    if groups.any and runtime.drivers != 1:
        raise ConfigError(
            f"runtime.drivers={runtime.drivers}: a model that runs on several ranks (ranks) is not "
            "possible with it; leave one of the two out"
        )
    if runtime.engine == "ray":
        server = _serve_metrics(runtime, resources)
        return _with_metrics(_open_on_ray(runtime, preflight, resources, groups), server)
    deadline = time.monotonic() + runtime.start_timeout
    launched = launcher.rank_info()
    launcher.leave_if_superfluous(launched)
    nproc = runtime.nproc or 1
    info = launched or RankInfo("none" if nproc == 1 else "distinf", 0, nproc, 0, nproc)
    _check_launch(runtime, info, launched.launcher if launched else "no launcher")
    groups.check(info.world_size)
    local: LocalRanks | None = None
    if launched is None and nproc > 1:
        local = LocalRanks(nproc, _serve, (runtime,))  # they import while this rank does
        resources.callback(local.stop)
    metrics: MetricsServer | None = None
    if info.rank == 0:
        try:
            metrics = _serve_metrics(runtime, resources)
            if preflight is not None:
                preflight()
        except BaseException as error:
            if local is None and info.world_size > 1:
                from distinf.session import roles

                roles.refuse(info, deadline, error)
            raise
    from distinf.session import roles

    joined = roles.join(info, runtime, deadline, local, must_match, resources, groups)
    return _with_metrics(joined, metrics)


def _serve_metrics(runtime: Runtime, resources: ExitStack) -> MetricsServer | None:
    """Serve metrics if they are wanted: before anything loads, since the port may be taken."""
    if runtime.metrics_port is None:
        return None
    from distinf.report import MetricsServer

    return resources.enter_context(closing(MetricsServer(runtime.metrics_port)))


def _with_metrics(opened: Session, metrics: MetricsServer | None) -> Session:
    if metrics is not None:
        farm = opened.farm
        metrics.follow(lambda: farm.events, farm.status)
        opened.metrics = metrics
    return opened


def _open_on_ray(
    runtime: Runtime,
    preflight: Callable[[], None] | None,
    resources: ExitStack,
    groups: GroupSizes,
) -> Session:
    launched = launcher.rank_info()
    if launched is not None and launched.world_size > 1:
        raise ConfigError(
            f"runtime.engine=ray: {launched.launcher} started {launched.world_size} ranks, but Ray "
            "starts the workers: start one process, by python, ray job submit or ray symmetric-run"
        )
    if preflight is not None:
        preflight()
    from distinf.session import ray_cluster

    return ray_cluster.join(runtime, resources, groups)


def _check_launch(runtime: Runtime, info: RankInfo, launcher: str) -> None:
    """Refuse what this rank alone can find to be wrong, before torch is imported."""
    if runtime.expect_ranks not in (None, info.world_size):
        raise ConfigError(
            f"runtime.expect_ranks={runtime.expect_ranks}, but there are {info.world_size} "
            f"rank(s) ({launcher} started them): start the run with that many, or change the key"
        )
    if runtime.drivers != "auto" and runtime.drivers > info.world_size:
        raise ConfigError(
            f"runtime.drivers={runtime.drivers}, but there are {info.world_size} rank(s) "
            f"({launcher} started them): start more, or choose auto or at most {info.world_size}"
        )
    if runtime.interface is not None:
        network.check_interface(runtime.interface)


def _serve(runtime: Runtime) -> None:
    """Run a rank that rank 0 started."""
    try:
        with session(runtime):
            pass
    except ConfigError:  # rank 0 has the same settings, and says it
        sys.exit(1)
