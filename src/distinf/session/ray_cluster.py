"""The session of a run on Ray: the cluster, and one actor for each worker."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distinf.errors import ConfigError, SessionError
from distinf.options import Runtime
from distinf.session import process, ray_remains
from distinf.session.launcher import RankInfo
from distinf.session.roles import DriverSession

if TYPE_CHECKING:
    from distinf.transport import RayTransport

log = logging.getLogger("distinf")

_ALONE = RankInfo("none", 0, 1, 0, 1)
# With 0 a cluster that Ray starts for one run listens on loopback only.
_BEYOND_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# In which a worker is usually there; the promise is 30.
_PATIENCE_SECONDS = 20.0
_END_SECONDS = 20.0
_NAMED = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


def join(runtime: Runtime, resources: ExitStack) -> DriverSession:
    """Connect to the cluster, or start one, and open the driver's session; its actors follow.

    What is opened goes to ``resources``. Raises `ConfigError` if Ray is not installed, and
    `SessionError` if the cluster cannot be reached.
    """
    local = _is_local(runtime.address)
    if local:
        os.environ.setdefault(_BEYOND_LOOPBACK, "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(
            'runtime.engine=ray: Ray is not installed; install it by pip install "distinf[ray]"'
        ) from None
    from distinf.transport import RayTransport, Worker

    resources.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(runtime.threads)
    process.keep_freed_memory()
    _connect(ray, runtime, local, resources)
    cluster = ray.cluster_resources()
    number = runtime.most_workers or _number_of_gpus(ray) or 2
    actors = _actors(ray, runtime, number, cluster)  # they import while this process does
    device = process.choose_device(_ALONE)
    process.initialize_manager(_ALONE, device, None)
    resources.callback(process.end_manager)
    worker = Worker(0, device, runtime.nonfinite)
    worker.results_stay = runtime.results == "device"
    world = RankInfo("ray", 0, number + 1, 0, number + 1 if local else 1)
    opened: DriverSession | None = None

    def lost(rank: int, reason: str) -> None:
        if opened is not None:
            opened.mark_lost(rank, reason)

    transport = RayTransport(worker, actors, lost, worker.results_stay)
    opened = DriverSession(world, runtime, worker, transport, resources, [], None)
    timer = threading.Timer(_PATIENCE_SECONDS, _say_what_lacks, (ray, runtime, transport))
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


def _connect(ray: Any, runtime: Runtime, local: bool, resources: ExitStack) -> None:
    if ray.is_initialized():  # by the application, which ends it
        return
    words: dict[str, Any] = {"address": "local" if local else runtime.address}
    if local:
        words["num_cpus"] = max(os.cpu_count() or 1, runtime.most_workers or 2)
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
        n["NodeManagerAddress"] for n in ray.nodes() if n["NodeManagerAddress"] != "127.0.0.1"
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


def _number_of_gpus(ray: Any) -> int:
    """Return how many GPUs are free; where none is, how many there are."""
    return int(ray.available_resources().get("GPU", 0) or ray.cluster_resources().get("GPU", 0))


def _actors(
    ray: Any, runtime: Runtime, number: int, cluster: Mapping[str, float]
) -> dict[int, Any]:
    from distinf.transport import CONCURRENCY, RayWorker

    asked = _resources(runtime, cluster)
    named = {_NAMED[key]: asked.pop(key) for key in _NAMED if key in asked}
    declare: Any = ray.remote(
        **{"num_cpus": 0, **named},
        resources=asked,
        concurrency_groups=CONCURRENCY,
        max_restarts=-1,  # Ray starts a lost worker again, on another node if need be
        max_task_retries=0,  # the farm tries a task again
    )
    actor = declare(RayWorker)
    prepare = functools.partial(_prepare, runtime.threads, os.getcwd(), tuple(sys.path))
    return {n: actor.remote(n, runtime.nonfinite, prepare) for n in range(1, number + 1)}


def _say_what_lacks(ray: Any, runtime: Runtime, transport: RayTransport) -> None:
    """Say which workers are not there yet, what they ask for and what the cluster has."""
    lacking = len(transport.may_join) - len(transport.there)
    if not lacking:
        return
    has, free = ray.cluster_resources(), ray.available_resources()
    asked = _resources(runtime, has)
    limit = runtime.wait_for_workers
    log.warning(
        "%d of %d workers are not there yet: each asks Ray for %s; the cluster has %s, of which %s "
        "are free%s",
        lacking,
        len(transport.may_join),
        _counted(asked, asked),
        _counted(has, asked),
        _counted(free, asked),
        "" if limit is None else f" (waiting at most {limit:g} s, runtime.wait_for_workers)",
    )


def _counted(resources: Mapping[str, float], keys: Iterable[str]) -> str:
    return ", ".join(f"{key} {resources.get(key, 0):g}" for key in keys)


def _resources(runtime: Runtime, cluster: Mapping[str, float]) -> dict[str, float]:
    """Return what is reserved for each worker."""
    return dict(runtime.resources or ({"GPU": 1} if cluster.get("GPU") else {"CPU": 1}))


def _prepare(threads: int, folder: str, modules: Sequence[str]) -> torch.device:
    """Set up the process of a worker, and return the device on which it computes."""
    if os.path.isdir(folder):  # for relative paths of models
        os.chdir(folder)
    # Ray hands on the script's folder only, and not what was added to it.
    sys.path += [place for place in modules if place not in sys.path]
    torch.set_num_threads(threads)
    process.keep_freed_memory()
    device = process.choose_device(_ALONE)
    process.initialize_manager(_ALONE, device, None)
    return device
