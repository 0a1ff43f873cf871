"""Which launcher started this process; starting the ranks ourselves when none did."""

from __future__ import annotations

import glob
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

__all__ = ["OwnRanks", "Place", "default_nproc", "find_place"]

_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Place:
    """Where this process stands among the ranks of its launcher.

    Parameters
    ----------
    launcher : str
        ``"torchrun"``, ``"distinf"`` or ``"environment"`` (RANK and WORLD_SIZE were set).
    rank, world_size, local_rank, local_world_size : int
        As in torch.distributed.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def find_place(environ: Mapping[str, str] | None = None) -> Place | None:
    """Find out which launcher started this process.

    Parameters
    ----------
    environ : Mapping[str, str] | None, optional
        The environment, by default that of this process.

    Returns
    -------
    Place | None
        None when no launcher did.
    """
    env = os.environ if environ is None else environ
    if "RANK" not in env or "WORLD_SIZE" not in env:
        return None
    if "DISTINF_RANKS" in env:
        launcher = "distinf"
    else:
        launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "environment"
    rank, world_size = int(env["RANK"]), int(env["WORLD_SIZE"])
    return Place(
        launcher=launcher,
        rank=rank,
        world_size=world_size,
        local_rank=int(env.get("LOCAL_RANK", rank)),
        local_world_size=int(env.get("LOCAL_WORLD_SIZE", world_size)),
    )


def default_nproc() -> int:
    """Ranks to start on this machine: one a GPU, at least a driver and a worker.

    Without a GPU three, so that two workers share the diagnostics.
    """
    if not glob.glob("/dev/nvidia[0-9]*") and not os.path.exists("/dev/dxg"):
        return 3  # without the second that importing torch takes
    import torch

    return max(2, torch.cuda.device_count()) if torch.cuda.is_available() else 3


def listen_on_loopback() -> socket.socket:
    """Open a listening socket on a free port of 127.0.0.1."""
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
