"""Start the ranks on this machine ourselves, when no launcher did."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

__all__ = ["OwnRanks", "listen_on_loopback"]

_STOP_SECONDS = 5.0


def listen_on_loopback() -> socket.socket:
    """Open a listening socket on a free port of 127.0.0.1, which the caller closes."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    return sock


class OwnRanks:
    """The worker processes that the driver started itself, on this machine.

    They are started afresh (``spawn``), so a script that opens a session with ``nproc=`` needs
    the usual ``if __name__ == "__main__":``. They ignore Ctrl-C, which the terminal sends to
    all, and end when the driver's process does.

    Parameters
    ----------
    nproc : int
        Ranks including the driver.
    port : int
        Of the driver's rendezvous store on 127.0.0.1.
    target : Callable[..., None]
        What a worker runs, importable.
    args : tuple[Any, ...]
        Its arguments.
    """

    def __init__(
        self, nproc: int, port: int, target: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes = {}
        self._stopping = threading.Event()
        for rank in range(1, nproc):
            env = {
                "DISTINF_RANKS": "1",
                # TensorPipe warns of every connection that ends, also at a normal end.
                "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
                "RANK": str(rank),
                "WORLD_SIZE": str(nproc),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(nproc),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            process = context.Process(
                target=_run_rank, args=(env, target, args), name=f"rank{rank}", daemon=True
            )
            process.start()
            self._processes[rank] = process

    def died(self) -> dict[int, str]:
        """Ranks whose processes have ended, and how."""
        return {
            rank: _ending(process.exitcode)
            for rank, process in self._processes.items()
            if process.exitcode is not None
        }

    def watch(self, lost: Callable[[int, str], None]) -> None:
        """Call ``lost(rank, reason)`` from a thread when a process ends before :meth:`stop`."""

        def run() -> None:
            living: dict[Any, int] = {p.sentinel: rank for rank, p in self._processes.items()}
            while living and not self._stopping.is_set():
                for sentinel in wait(list(living), timeout=0.5):
                    rank = living.pop(sentinel)
                    self._processes[rank].join(_STOP_SECONDS)
                    if not self._stopping.is_set():
                        lost(rank, _ending(self._processes[rank].exitcode))

        threading.Thread(target=run, name="distinf-watch", daemon=True).start()

    def kill(self, rank: int) -> None:
        """End a process that is given up."""
        self._processes[rank].kill()

    def expect_end(self) -> None:
        """Stop calling anybody about processes that end."""
        self._stopping.set()

    def stop(self, patience: float = _STOP_SECONDS) -> None:
        """Wait for the processes to end by themselves, then end them."""
        self._stopping.set()
        _wait_all(self._processes.values(), patience)
        for process in self._processes.values():
            if process.exitcode is None:
                process.terminate()
        _wait_all(self._processes.values(), 1.0)
        for process in self._processes.values():
            if process.exitcode is None:
                process.kill()
                process.join(_STOP_SECONDS)


def _wait_all(processes: Any, patience: float) -> None:
    """Wait for processes to end, together no longer than ``patience`` seconds."""
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


def _ending(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"its process was killed by {signal.Signals(-exitcode).name}"
    return f"its process ended with exit status {exitcode}"


def _run_rank(env: dict[str, str], target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Run a worker in its new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(env)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, name="distinf-follow", daemon=True).start()
    target(*args)
