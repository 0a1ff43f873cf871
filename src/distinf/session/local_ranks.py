"""Start the ranks on this machine, when no launcher did."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from distinf.session.network import LOOPBACK, listen

_PRELOADED = ["distinf.session.preloaded"]
_KILL_SECONDS = 5.0
_TERMINATE_SECONDS = 1.0


class LocalRanks:
    """Worker processes that rank 0 starts on this machine; ``target(*args)`` runs in each.

    Python's fork server imports torch and what else all workers need, once, while rank 0 imports
    it, too, and forks the workers. So they start sooner and share this memory. The server runs
    until this process ends: the workers of a second session start at once. The script that starts
    them needs ``if __name__ == "__main__":``. They ignore Ctrl-C, which the terminal sends to all
    processes, and end soon after rank 0.

    They join the store at the socket ``listener``. ``patience`` is how many seconds :meth:`stop`
    waits for them to end by themselves, at first 0.
    """

    def __init__(self, nproc: int, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.listener = listen(LOOPBACK)
        self.patience = 0.0
        self._stopping = threading.Event()
        self._processes: dict[int, BaseProcess] = {}
        self._failed: dict[int, str] = {}
        # TensorPipe warns of every connection that ends, also at a normal end.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        _run_fork_server()
        port = str(self.listener.getsockname()[1])
        environment = {
            **os.environ,  # the fork server keeps those of the first session
            "DISTINF_RANKS": "1",
            "WORLD_SIZE": str(nproc),
            "LOCAL_WORLD_SIZE": str(nproc),
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": port,
        }
        processes = [
            context.Process(
                target=_run_rank,
                args=({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, target, args),
                name=f"rank{rank}",
                daemon=True,
            )
            for rank in range(1, nproc)
        ]
        # On a thread, so that rank 0 imports while the fork server does.
        self._starting = threading.Thread(
            target=self._start, args=(processes,), name="distinf-start", daemon=True
        )
        self._starting.start()

    def _start(self, processes: Sequence[BaseProcess]) -> None:
        for rank, process in enumerate(processes, 1):
            try:
                process.start()
            except Exception as error:  # such as a script without `if __name__ == "__main__":`
                self._failed[rank] = f"it was not started: {error or type(error).__name__}"
                return  # the next one would start another fork server
            self._processes[rank] = process

    def ended(self) -> dict[int, str]:
        """Return the ranks whose processes have ended, and how."""
        ended = {
            rank: _ending(process.exitcode)
            for rank, process in tuple(self._processes.items())
            if process.exitcode is not None
        }
        return {**ended, **self._failed}

    def watch(self, lost: Callable[[int, str], None]) -> None:
        """Call ``lost(rank, reason)`` from a thread when a process ends before it is expected."""

        def run() -> None:
            living: dict[Any, int] = {p.sentinel: rank for rank, p in self._processes.items()}
            while living and not self._stopping.is_set():
                for sentinel in wait(list(living), timeout=0.5):
                    rank = living.pop(sentinel)
                    self._processes[rank].join(_KILL_SECONDS)
                    if not self._stopping.is_set():
                        lost(rank, _ending(self._processes[rank].exitcode))

        threading.Thread(target=run, name="distinf-watch", daemon=True).start()

    def kill(self, rank: int) -> None:
        """Kill the process of a lost rank."""
        self._processes[rank].kill()

    def expect_end(self) -> None:
        """Report no process that ends from now on."""
        self._stopping.set()

    def stop(self) -> None:
        """Wait for the processes to end by themselves, then end them."""
        self.listener.close()
        self._stopping.set()
        if self._starting.is_alive():
            _kill_fork_server()  # it still imports, for processes that are no longer needed
            self._starting.join()
        self._join_all(self.patience)
        for process in self._processes.values():
            if process.exitcode is None:
                process.terminate()
        self._join_all(_TERMINATE_SECONDS)
        for process in self._processes.values():
            if process.exitcode is None:
                process.kill()
                process.join(_KILL_SECONDS)

    def _join_all(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        for process in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))


def _ending(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"its process was killed by {signal.Signals(-exitcode).name}"
    return f"its process ended with exit status {exitcode}"


def _run_fork_server() -> None:
    """Start the fork server, unless it runs, with Ctrl-C blocked, also while it imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_fork_server() -> None:
    """Kill the fork server; the next session starts another one."""
    server: Any = forkserver
    os.kill(server._forkserver._forkserver_pid, signal.SIGKILL)


def _run_rank(env: dict[str, str], target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Run a worker in its new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(env)
    threading.Thread(target=_end_with_parent, name="distinf-parent", daemon=True).start()
    target(*args)


def _end_with_parent() -> None:
    """Wait until rank 0's process has ended, then end this one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
