"""Where the ranks of a session meet: a store that the driver hosts, found without a fixed port."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from distinf.errors import ConfigError, NoDriver, SessionError
from distinf.session import announce, port_file
from distinf.session.launcher import Place, likely_cause
from distinf.session.local_ranks import listen_on_loopback
from distinf.session.network import bind_address

__all__ = ["meeting"]

_LOOPBACK = "127.0.0.1"
_sessions = itertools.count()
# Stores at an address that somebody else chose: they outlive a session, because the next one,
# for which some ranks are early, is at the same address.
_kept: dict[tuple[str, int], dist.Store] = {}


@contextlib.contextmanager
def meeting(
    place: Place, listener: socket.socket | None, deadline: float
) -> Iterator[tuple[dist.Store, str]]:
    """Meet at the launcher's store, or at the driver's own; others find it during the block.

    Parameters
    ----------
    place : Place
        Where this rank stands.
    listener : socket.socket | None
        The driver's listening socket, if it started the ranks itself.
    deadline : float
        On the monotonic clock.

    Yields
    ------
    torch.distributed.Store
        A store of this session alone, so that a session can be opened again.
    str
        The host that it is on.

    Raises
    ------
    SessionError
        If it cannot be reached in time.
    """
    if listener is not None:
        yield _host(_LOOPBACK, listener, deadline), _LOOPBACK
    elif (address := _given(place)) is not None:
        store = _kept.get(address) or _store_at(place, *address, deadline)
        if place.launcher == "distinf":  # its ranks live for one session
            yield dist.PrefixStore("distinf", store), address[0]
            return
        _kept[address] = store
        # The launcher's store also outlives restarts of its ranks.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        yield dist.PrefixStore(f"distinf/{attempt}/{next(_sessions)}", store), address[0]
    elif place.rank != 0:
        host, port = _find(place, deadline)
        yield dist.PrefixStore("distinf", _join(place, host, port, deadline)), host
    elif place.on_one_node:
        found = listen_on_loopback()
        with port_file.published(place.job, found.getsockname()[1]):
            yield _host(_LOOPBACK, found, deadline), _LOOPBACK
    else:
        bind = bind_address(_hosts(place)[0])
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as found:
            found.bind((bind, 0))
            found.listen(1024)
            with announce.announced(place.job, bind, found.getsockname()[1]):
                yield _host(bind, found, deadline), _hosts(place)[0]


def _given(place: Place) -> tuple[str, int] | None:
    """Return the address that the launcher or the user set."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if port is None:
        return None
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"MASTER_PORT={port}: must be a port, 1 to 65535")
    return host or (_LOOPBACK if place.on_one_node else _hosts(place)[0]), int(port)


def _hosts(place: Place) -> tuple[str, ...]:
    host = os.environ.get("MASTER_ADDR")
    if host is None and not place.hosts:
        raise SessionError(
            f"{place.launcher} does not tell where rank 0 is: set MASTER_ADDR to its host, on "
            "every rank"
        )
    return (host,) if host is not None else place.hosts


def _find(place: Place, deadline: float) -> tuple[str, int]:
    began = time.monotonic()
    try:
        if place.on_one_node:
            return _LOOPBACK, port_file.read(place.job, deadline)
        # Slurm lists all nodes, of which rank 0's is the first; mpirun's one has many addresses.
        hosts = _hosts(place)
        hosts = hosts[:1] if place.launcher == "slurm" else hosts
        return announce.ask(place.job, hosts, deadline)
    except TimeoutError as error:
        raise NoDriver(
            f"rank {place.rank} on {socket.gethostname()} waited {time.monotonic() - began:.0f} s "
            f"(runtime.start_timeout) for rank 0 of {place.world_size}, which never arrived: "
            f"{error}. {likely_cause(place)}"
        ) from None


def _store_at(place: Place, host: str, port: int, deadline: float) -> dist.Store:
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    if place.rank != 0 or place.launcher == "distinf" or (place.launcher == "torchrun" and agent):
        return _join(place, host, port, deadline)
    bind = bind_address(host, place.on_one_node)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((bind, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise SessionError(
            f"rank 0 on {socket.gethostname()} cannot listen on {host}:{port}, where MASTER_ADDR "
            f"and MASTER_PORT put the rendezvous ({error.strerror}). Does another job use it? "
            "Choose another MASTER_PORT, or leave both unset"
        ) from None
    return _serve(bind, listener, deadline)


def _host(bind: str, listener: socket.socket, deadline: float) -> dist.Store:
    return dist.PrefixStore("distinf", _serve(bind, listener, deadline))


def _serve(bind: str, listener: socket.socket, deadline: float) -> dist.Store:
    """Serve the store on a listening socket, which it takes over."""
    port = listener.getsockname()[1]
    return dist.TCPStore(
        _LOOPBACK if bind == "0.0.0.0" else bind,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=_left(deadline),
        master_listen_fd=listener.detach(),
    )


def _join(place: Place, host: str, port: int, deadline: float) -> dist.Store:
    began = time.monotonic()
    try:
        return dist.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=_left(deadline)
        )
    except Exception as error:
        raise NoDriver(
            f"rank {place.rank} on {socket.gethostname()} waited {time.monotonic() - began:.0f} s "
            f"(runtime.start_timeout) for the rendezvous of rank 0 at {host}:{port}, which does "
            f"not answer ({str(error).splitlines()[0]}). {likely_cause(place)}"
        ) from error


def _left(deadline: float) -> timedelta:
    return timedelta(seconds=max(1.0, deadline - time.monotonic()))
