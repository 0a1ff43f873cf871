"""How the ranks of a launch find rank 0 and its store.

The store is at the address that the launcher or the user set. Without one, rank 0 listens on a
free port, and the other ranks learn it in one of two ways while they start:

- On one node from a file in a folder that only this user can read. Rank 0 keeps it locked: a file
  without a lock is of a process that has ended.
- On several nodes from rank 0 itself, which answers on one of a few ports that are computed from
  the launch's id. The answer has this id, so that ranks do not join another run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from distinf.errors import ConfigError, NoDriver, SessionError
from distinf.paths import private_folder
from distinf.session.launcher import RankInfo, late
from distinf.session.network import LOOPBACK, bind_address, listen

_POLL_SECONDS = 0.02
_LOCK_SECONDS = 2.0  # a reader holds the lock for a moment

_FIRST_PORT, _PORTS = 20000, 10000  # below the ports that systems hand out themselves
_TRIES = 8
_ANSWER_SECONDS = 5.0
_ASK_AGAIN_SECONDS = 0.1

_sessions = itertools.count()
# Stores at an address from outside. They outlive a session: some ranks may already have joined
# this address for the next session.
_kept: dict[tuple[str, int], dist.Store] = {}


@contextmanager
def meeting(
    info: RankInfo, listener: socket.socket | None, deadline: float
) -> Iterator[tuple[dist.Store, str]]:
    """Join the launcher's store or rank 0's; other ranks can find rank 0 during the block.

    Yields a store of this session alone, so that a session can be opened again, and its host.
    ``listener`` is rank 0's socket, if it started the ranks itself; ``deadline`` is on the
    monotonic clock. Raises `SessionError` if the store cannot be reached in time.
    """
    if listener is not None:
        yield _own_store(LOOPBACK, listener, deadline), LOOPBACK
    elif (address := _given_address(info)) is not None:
        store = _kept.get(address) or _store_at(info, *address, deadline)
        if info.launcher == "distinf":  # these ranks live for one session only
            yield dist.PrefixStore("distinf", store), address[0]
            return
        _kept[address] = store
        # The launcher's store also lives on when it restarts the ranks.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        yield dist.PrefixStore(f"distinf/{attempt}/{next(_sessions)}", store), address[0]
    elif info.rank != 0:
        host, port = _find(info, deadline)
        yield join_own(info, host, port, deadline), host
    elif info.on_one_node:
        found = listen(LOOPBACK)
        with found, port_in_file(info.job, found.getsockname()[1]):
            yield _own_store(LOOPBACK, found, deadline), LOOPBACK
    else:
        host = _hosts(info)[0]
        bind = bind_address(host)
        found = listen(bind)
        with found, announced(info.job, bind, found.getsockname()[1]):
            yield _own_store(bind, found, deadline), host


def _given_address(info: RankInfo) -> tuple[str, int] | None:
    """Return the address that the launcher or the user set."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if port is None:
        return None
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"MASTER_PORT={port}: must be a port, 1 to 65535")
    return host or (LOOPBACK if info.on_one_node else _hosts(info)[0]), int(port)


def _hosts(info: RankInfo) -> tuple[str, ...]:
    """Return names or addresses under which rank 0's node may be reached."""
    host = os.environ.get("MASTER_ADDR")
    if host is None and not info.hosts:
        raise SessionError(
            f"{info.launcher} does not tell where rank 0 is: set MASTER_ADDR to its host, on "
            "every rank"
        )
    return (host,) if host is not None else info.hosts


def _find(info: RankInfo, deadline: float) -> tuple[str, int]:
    """Wait for rank 0's host and port."""
    began = time.monotonic()
    try:
        if info.on_one_node:
            return LOOPBACK, read_port(info.job, deadline)
        # Slurm lists all nodes, rank 0's first; mpirun lists several addresses of one node.
        hosts = _hosts(info)
        return ask_port(info.job, hosts[:1] if info.launcher == "slurm" else hosts, deadline)
    except TimeoutError as error:
        missing = f"rank 0 of {info.world_size}, which never arrived: {error}"
        raise NoDriver(late(info, began, missing)) from None


def _store_at(info: RankInfo, host: str, port: int, deadline: float) -> dist.Store:
    """Join the store at an address from outside; rank 0 serves it unless torchrun does."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    if info.rank != 0 or info.launcher == "distinf" or (info.launcher == "torchrun" and agent):
        return _join(info, host, port, deadline)
    bind = bind_address(host, info.on_one_node)
    try:
        return _serve(bind, listen(bind, port), deadline)
    except OSError as error:
        raise SessionError(
            f"rank 0 on {socket.gethostname()} cannot listen on {host}:{port}, where MASTER_ADDR "
            f"and MASTER_PORT put the rendezvous ({os.strerror(error.errno or 0)}). Does another "
            "job use it? Choose another MASTER_PORT, or leave both unset"
        ) from None


def _own_store(bind: str, listener: socket.socket, deadline: float) -> dist.Store:
    return dist.PrefixStore("distinf", _serve(bind, listener, deadline))


def serve_own(bind: str, deadline: float) -> tuple[dist.Store, int]:
    """Serve a store on a free port of an address; return the port, too."""
    listener = listen(bind)
    port = listener.getsockname()[1]
    return _own_store(bind, listener, deadline), port


def join_own(info: RankInfo, host: str, port: int, deadline: float) -> dist.Store:
    """Join the store that another rank serves at an address; raises `SessionError` if it cannot."""
    return dist.PrefixStore("distinf", _join(info, host, port, deadline))


def _serve(bind: str, listener: socket.socket, deadline: float) -> dist.Store:
    """Serve a store on a listening socket, which it takes over."""
    port = listener.getsockname()[1]
    return dist.TCPStore(
        LOOPBACK if bind == "0.0.0.0" else bind,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=_left(deadline),
        master_listen_fd=listener.detach(),
    )


def _join(info: RankInfo, host: str, port: int, deadline: float) -> dist.Store:
    began = time.monotonic()
    try:
        return dist.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=_left(deadline)
        )
    except Exception as error:
        why = str(error).splitlines()[0]
        missing = f"the rendezvous of rank 0 at {host}:{port}, which does not answer ({why})"
        raise NoDriver(late(info, began, missing)) from error


def _left(deadline: float) -> timedelta:
    return timedelta(seconds=max(1.0, deadline - time.monotonic()))


@contextmanager
def port_in_file(job: str, port: int) -> Iterator[None]:
    """Let the ranks of launch ``job`` on this machine read the port of rank 0, during the block.

    Raises `SessionError` if another rank 0 with the same ``job`` does so now. The file is removed
    at the end, so that the next session under the same launcher cannot find an old one.
    """
    path = _port_file(job)
    handle = _lock(path)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"port": port, "pid": os.getpid()}).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _port_file(job: str) -> Path:
    return private_folder(SessionError) / f"{job}.port"


def _lock(path: Path) -> int:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                owner = os.read(handle, 200).decode()
                os.close(handle)
                raise SessionError(
                    f"another run was started by the same launcher at the same time ({owner}): "
                    "start each with a launcher of its own, or one after the other"
                ) from None
        os.close(handle)
        time.sleep(_POLL_SECONDS)


def read_port(job: str, deadline: float) -> int:
    """Wait for the port that a living rank 0 of launch ``job`` has in its file.

    Raises `TimeoutError` at the deadline, on the monotonic clock.
    """
    path = _port_file(job)
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # its owner lives
                text = os.read(handle, 200)
                if text.endswith(b"}"):
                    return int(json.loads(text)["port"])
            finally:
                os.close(handle)
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"no living process of rank 0 has written {path}")


def announcement_ports(job: str) -> list[int]:
    """Return the ports on which rank 0 of launch ``job`` may answer, in the order of trying."""
    start = int(hashlib.sha256(job.encode()).hexdigest(), 16)
    return [_FIRST_PORT + (start + 7919 * i) % _PORTS for i in range(_TRIES)]


@contextmanager
def announced(job: str, bind: str, port: int) -> Iterator[None]:
    """Answer the ranks of launch ``job`` on address ``bind`` with the port, during the block.

    Raises `SessionError` if all ports of this launch are taken.
    """
    listener = _listen_for_questions(job, bind)
    answer = json.dumps({"job": job, "port": port}).encode() + b"\n"

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:  # the block ended
                return
            with contextlib.suppress(OSError), peer:
                peer.settimeout(_ANSWER_SECONDS)
                peer.sendall(answer)

    threading.Thread(target=serve, name="distinf-announce", daemon=True).start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        listener.close()


def _listen_for_questions(job: str, bind: str) -> socket.socket:
    ports = announcement_ports(job)
    for port in ports:
        with contextlib.suppress(OSError):
            return listen(bind, port)
    raise SessionError(
        f"all ports of this launch ({', '.join(map(str, ports))}) are taken on "
        f"{socket.gethostname()}: set MASTER_ADDR and MASTER_PORT to a free one, on every rank"
    )


def ask_port(job: str, hosts: tuple[str, ...], deadline: float) -> tuple[str, int]:
    """Ask rank 0 of launch ``job`` for its port; return the host that answered, and the port.

    Any of ``hosts`` may be unreachable. Raises `TimeoutError` at the deadline, on the monotonic
    clock, with what else answered.
    """
    seen = ""
    while time.monotonic() < deadline:
        for host, port in itertools.product(hosts, announcement_ports(job)):
            answer, problem = _ask_one(host, port, deadline)
            if answer.get("job") == job:
                return host, int(answer["port"])
            if answer:
                problem = "another run of distinf answers"
            if problem and "refused" not in problem:
                seen = f"; at {host}:{port}: {problem}"
            if time.monotonic() > deadline:
                break
        time.sleep(_ASK_AGAIN_SECONDS)
    raise TimeoutError(f"rank 0 does not answer on {' or '.join(hosts)}{seen}")


def _ask_one(host: str, port: int, deadline: float) -> tuple[dict[str, str], str]:
    """Return the answer, or an empty one and what went wrong."""
    patience = max(0.1, min(_ANSWER_SECONDS, deadline - time.monotonic()))
    try:
        with socket.create_connection((host, port), timeout=patience) as peer:
            peer.settimeout(min(patience, 2.0))
            found = json.loads(peer.makefile("rb").readline(300))
    except (OSError, ValueError) as error:
        return {}, str(error)
    return (found, "") if isinstance(found, dict) else ({}, "another program answers")
