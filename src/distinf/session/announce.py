"""How ranks on several nodes learn the port that their driver found free.

A port follows from what the ranks of a launch have in common; the next ones are tried where
another program has it. There the driver answers everyone with the launch's name and the port of
its store, so ranks notice whom they are talking to before they rely on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator

from distinf.errors import SessionError

__all__ = ["announced", "ask", "ports_of"]

_FIRST_PORT, _PORTS = 20000, 10000  # below the ports that systems hand out themselves
_TRIES = 8
_ANSWER_SECONDS = 5.0
_POLL_SECONDS = 0.1


def ports_of(job: str) -> list[int]:
    """Ports at which the driver of this launch may answer, in their order."""
    start = int(hashlib.sha256(job.encode()).hexdigest(), 16)
    return [_FIRST_PORT + (start + 7919 * i) % _PORTS for i in range(_TRIES)]


@contextlib.contextmanager
def announced(job: str, bind: str, port: int) -> Iterator[None]:
    """Answer this launch's other ranks, during the block.

    Parameters
    ----------
    job : str
        What the ranks of this launch have in common.
    bind : str
        Address to listen on.
    port : int
        Of the store.

    Raises
    ------
    SessionError
        If all ports of this launch are taken.
    """
    listener = _listen(job, bind)
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


def _listen(job: str, bind: str) -> socket.socket:
    ports = ports_of(job)
    for port in ports:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((bind, port))
            listener.listen(1024)
        except OSError:
            listener.close()
            continue
        return listener
    raise SessionError(
        f"all ports of this launch ({', '.join(map(str, ports))}) are taken on "
        f"{socket.gethostname()}: set MASTER_ADDR and MASTER_PORT to a free one, on every rank"
    )


def ask(job: str, hosts: tuple[str, ...], deadline: float) -> tuple[str, int]:
    """Ask for the port of the driver's store.

    Parameters
    ----------
    job : str
        What the ranks of this launch have in common.
    hosts : tuple[str, ...]
        Names or addresses of the driver's node, any of which may be out of reach.
    deadline : float
        On the monotonic clock.

    Returns
    -------
    tuple[str, int]
        The host that answered, and the port.

    Raises
    ------
    TimeoutError
        If no driver of this launch answered; it tells what did.
    """
    seen = ""
    while time.monotonic() < deadline:
        for host in hosts:
            for port in ports_of(job):
                answer, problem = _ask_one(host, port, deadline)
                if answer.get("job") == job:
                    return host, int(answer["port"])
                if answer:
                    problem = "another run of distinf answers"
                if problem and "refused" not in problem:
                    seen = f"; at {host}:{port}: {problem}"
                if time.monotonic() > deadline:
                    break
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"rank 0 does not answer on {' or '.join(hosts)}{seen}")


def _ask_one(host: str, port: int, deadline: float) -> tuple[dict[str, str], str]:
    patience = max(0.1, min(_ANSWER_SECONDS, deadline - time.monotonic()))
    try:
        with socket.create_connection((host, port), timeout=patience) as peer:
            peer.settimeout(min(patience, 2.0))
            found = json.loads(peer.makefile("rb").readline(300))
    except (OSError, ValueError) as error:
        return {}, str(error)
    return (found, "") if isinstance(found, dict) else ({}, "another program answers")
