"""A process beside a Ray cluster of one run: when the driver has ended, it ends what is left.

Ray ends its processes with the driver, but some of them more than 30 s later.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time

import psutil

_SECONDS = 10.0


def end_what_is_left(folder: str, driver: int) -> None:
    """Kill the processes of a cluster but the driver, then remove its folder."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and kill_others(folder, driver):
        pass
    shutil.rmtree(folder, ignore_errors=True)


def kill_others(folder: str, driver: int) -> bool:
    """Kill the processes of a cluster but the driver; return whether there were any."""
    others = (one for one in psutil.process_iter() if one.pid != driver)
    left = [one for one in others if _belongs(one, folder)]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, 0.2)
    return bool(left)


def _belongs(process: psutil.Process, folder: str) -> bool:
    """Whether a process writes a log there: some of Ray's write over their environment."""
    try:
        return any(file.path.startswith(folder) for file in process.open_files())
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until the driver has closed it, or has ended
    end_what_is_left(sys.argv[1], int(sys.argv[2]))
