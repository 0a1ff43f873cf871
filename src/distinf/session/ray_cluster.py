"""The session of a run on Ray, and the cluster that is joined or started for it."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from distinf.errors import ConfigError, SessionError
from distinf.options import GroupSizes, Runtime
from distinf.session import network, process, ray_remains
from distinf.session.launcher import ALONE, RankInfo
from distinf.session.roles import DriverSession, after, give_up, leave
from distinf.versions import install_command

log = logging.getLogger("distinf")

# With 0 a cluster that Ray starts for one run listens on loopback only.
_BEYOND_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Under `uv run` Ray copies the folder, at most 512 MB, and installs all packages again for workers.
_COPY_ENVIRONMENT = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
# In which a worker is usually there; the promise is 30.
_PATIENCE_SECONDS = 20.0
_END_SECONDS = 20.0


def join(runtime: Runtime, resources: ExitStack, groups: GroupSizes) -> DriverSession:
    """Connect to the cluster, or start one, and open the driver's session; its actors follow.

    ``groups`` are the ranks that run a model together. What is opened goes to ``resources``. Raises
    `ConfigError` if Ray is not installed, and `SessionError` if the cluster cannot be reached, or
    ranks that run the prognostic with rank 0 do not start.
    """
    local = _is_local(runtime.address)
    if local:
        os.environ.setdefault(_BEYOND_LOOPBACK, "0")
    os.environ.setdefault(_COPY_ENVIRONMENT, "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(
            f"runtime.engine=ray: Ray is not installed: {install_command('distinf[ray]')}"
        ) from None
    from distinf.session.ray_workers import RayWorkers
    from distinf.transport import RayTransport, Worker

    resources.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(runtime.threads)
    process.keep_freed_memory()
    _connect(ray, runtime, local, resources, groups)
    workers = RayWorkers(runtime, groups, resources)
    beside, actors = workers.start()  # they import while this process does
    device = process.choose_device(ALONE)
    opened: DriverSession | None = None

    def lost_beside(rank: int, reason: str, _: bool) -> None:
        if opened is None or beside is None:  # this thread may wait for it in a collective
            give_up(f"rank {rank}, which runs the prognostic with rank 0, was lost: {reason}")
        else:
            opened.lose_prognostic(rank, reason, beside.end)

    if beside is None:
        process.initialize_manager(ALONE, device, None)
        resources.callback(process.end_manager)
    else:
        resources.enter_context(network.interface_restored())
        resources.callback(beside.end)
        words = "the ranks that run the prognostic did not form their group"
        guard = after(2 * runtime.start_timeout, functools.partial(give_up, words))
        try:
            resources.callback(leave, beside.form(device, lambda reason: None, lost_beside))
        finally:
            guard.cancel()
    worker = Worker(0, device, runtime.nonfinite)
    worker.results_stay = runtime.results == "device"
    size = workers.world_size
    world = RankInfo("ray", 0, size, 0, size if local else 1)

    def lost(rank: int, reason: str) -> None:
        if opened is not None:
            opened.mark_lost(rank, reason)

    def left(rank: int, host: str, error: str) -> None:
        if opened is not None:
            opened.lose_replica(rank, host, error)

    transport = RayTransport(worker, actors, lost, left, worker.results_stay)
    opened = DriverSession(world, runtime, worker, transport, resources, [], None, groups=groups)
    timer = threading.Timer(_PATIENCE_SECONDS, workers.say_what_lacks, (transport,))
    timer.daemon = True
    timer.start()
    resources.callback(timer.cancel)
    return opened


def _is_local(address: str) -> bool:
    """Whether this run starts a cluster of its own."""
    if address != "auto":
        return address == "local"
    folder = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()), "ray")
    return "RAY_ADDRESS" not in os.environ and not (folder / "ray_current_cluster").exists()


def _connect(
    ray: Any, runtime: Runtime, local: bool, resources: ExitStack, groups: GroupSizes
) -> None:
    if ray.is_initialized():  # by the application, which ends it
        return
    words: dict[str, Any] = {"address": "local" if local else runtime.address}
    if local:
        processes = groups.prognostic - 1 + groups.diagnostic * (runtime.most_workers or 2)
        words["num_cpus"] = max(os.cpu_count() or 1, processes)
        words["_temp_dir"] = tempfile.mkdtemp(prefix="distinf-ray-")
        _leave_nothing(words["_temp_dir"], resources)
    in_time = _in_time(runtime.start_timeout, words["_temp_dir"]) if local else nullcontext()
    try:
        with in_time:
            ray.init(**words, logging_level=logging.ERROR, namespace="distinf")
    except Exception as error:  # of many kinds
        first = " ".join(str(error).split())
        raise SessionError(f"runtime.address={runtime.address}: {first}") from error
    resources.callback(_disconnect, ray)
    beyond = [
        n["NodeManagerAddress"] for n in ray.nodes() if n["NodeManagerAddress"] != network.LOOPBACK
    ]
    mode = os.environ.get("RAY_AUTH_MODE", "")  # set by Ray where it found a token
    if beyond and mode.lower() != "token":
        log.warning(
            "the Ray cluster listens at %s without authentication (RAY_AUTH_MODE is not token): "
            "whoever reaches it can run code there",
            min(beyond),
        )


@contextmanager
def _in_time(seconds: float, folder: str) -> Iterator[None]:
    """End the processes of a cluster that does not start in time: Ray waits for them much longer.

    ``folder`` is the cluster's. Raises `SessionError` then.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        ray_remains.kill_others(folder, os.getpid())

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if not late.is_set():
            raise
        why = f"Ray has not started in {seconds:g} s (runtime.start_timeout)"
        raise SessionError(why) from error
    finally:
        timer.cancel()


def _disconnect(ray: Any) -> None:
    """Leave the cluster; go on if that takes long, as it does when the raylet does not answer."""
    ending = threading.Thread(target=ray.shutdown, name="distinf-ray-shutdown", daemon=True)
    ending.start()
    ending.join(_END_SECONDS)
    if ending.is_alive():
        log.warning("Ray has not ended in %g s and is left alone", _END_SECONDS)
        atexit.unregister(ray.shutdown)


def _leave_nothing(folder: str, resources: ExitStack) -> None:
    """Let a process beside this one end what outlives it, and remove the cluster's folder."""
    command = [sys.executable, "-m", ray_remains.__name__, folder, str(os.getpid())]
    beside = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def end() -> None:
        try:
            beside.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            beside.kill()
            beside.communicate()

    resources.callback(end)
