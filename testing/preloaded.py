"""Run main.py in a process that was forked from one with all imports done.

It is main.py as a user runs it, in a process and a session of its own, except that its imports,
and those of the workers that it starts, take no time. Launchers, first runs, lost processes and
promised deadlines are tested with processes that import.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import torch

from distinf.session import local_ranks
from testing import application

# The server of `multiprocessing` is one for this process, so the ranks of sessions in the tests'
# own process come from it, too.
MODULES = [
    "hydra",
    "distinf.session.preloaded",
    "distinf.pipeline",
    "earth2studio.data",
    "matplotlib.pyplot",
]


def run_main(
    *overrides: str,
    folder: Path,
    deadline: float = 400.0,
    meanwhile: Callable[[int], None] = lambda pid: None,
    **more: str,
) -> application.Outcome:
    """Run ``python main.py overrides`` in a folder to its end; kill its group at the deadline.

    ``meanwhile`` is called with its process id.
    """
    if torch.cuda.is_available():  # not after a fork
        started = application.start(application.python_main(*overrides), folder, **more)
        meanwhile(started.pid)
        return application.finish(started, deadline)
    with TemporaryDirectory() as scratch:
        printed = [Path(scratch, name) for name in ("out", "err")]
        context = _context()
        environment = application.environment(**more)
        address = forkserver._forkserver._forkserver_address
        arguments = (overrides, folder, environment, printed, address)
        process = context.Process(target=_main, args=arguments)
        process.start()
        assert process.pid is not None
        meanwhile(process.pid)
        process.join(deadline)
        late = process.exitcode is None
        if late:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        out, err = (path.read_text() if path.exists() else "" for path in printed)
        assert not late, f"not ended after {deadline} s:\n{out}\n{err}"
        assert process.exitcode is not None
        return application.Outcome(process.exitcode, out, err)


def left_after(seconds: float) -> list[psutil.Process]:
    """Return the forked processes that still live after so long."""
    server = forkserver._forkserver._forkserver_pid
    forked = [] if server is None else psutil.Process(server).children(recursive=True)
    return psutil.wait_procs(forked, seconds)[1]


def _context() -> ForkServerContext:
    """Return a context whose server has imported, without this process's number of threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")  # main.py sets it before it imports torch
        forkserver.ensure_running()
    return context


def _main(
    overrides: tuple[str, ...],
    folder: Path,
    environment: dict[str, str],
    printed: list[Path],
    address: str,
) -> None:
    # Its workers come from the same server, which must stay.
    local_ranks._kill_fork_server = lambda: None
    forkserver._forkserver._forkserver_address = address
    forkserver._forkserver.ensure_running = forkserver.ensure_running = lambda: None
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main = application.ROOT / "main.py"
    sys.argv = [str(main), *overrides]
    places = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [str(application.ROOT), *filter(None, places)]
    try:
        runpy.run_path(str(main), run_name="__main__")
    finally:
        atexit._run_exitfuncs()
