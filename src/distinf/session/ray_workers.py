"""The actors of a run on Ray: what each reserves, where, and how its process is set up."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import wait
from contextlib import ExitStack
from typing import Any

import ray
import torch
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distinf.background import in_background
from distinf.options import GroupSizes, Runtime
from distinf.session import process
from distinf.session.launcher import ALONE
from distinf.session.ray_group import Followers, RayGroup, begin_replica
from distinf.transport import CONCURRENCY, RayTransport, RayWorker

log = logging.getLogger("distinf")

_END_SECONDS = 10.0
_NAMED = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


class RayWorkers:
    """Starts the workers of a run, and the ranks that run the prognostic with rank 0.

    What Ray reserves for them is released with ``resources``.
    """

    def __init__(self, runtime: Runtime, groups: GroupSizes, resources: ExitStack) -> None:
        self._runtime, self._groups, self._resources = runtime, groups, resources
        own = {"GPU": 1} if ray.cluster_resources().get("GPU") else {"CPU": 1}
        self._asked: dict[str, float] = dict(runtime.resources or own)  # for each process
        self._prepare = functools.partial(_prepare, runtime.threads, os.getcwd(), tuple(sys.path))
        number = runtime.most_workers or _room(groups) or 2
        self.world_size = groups.prognostic + number * groups.diagnostic

    def start(self) -> tuple[Followers | None, dict[int, Any]]:
        """Start all; return the ranks beside rank 0, if any, and Ray's handles of the workers."""
        first, *replicas = self._groups.groups(self.world_size)
        beside = None
        if len(first) > 1:
            beside = Followers(self._group(first, self._reserve(len(first) - 1)))
        return beside, {ranks[0]: self._worker(ranks) for ranks in replicas}

    def _worker(self, ranks: tuple[int, ...]) -> Any:
        """Start a worker, the first rank of its replica."""
        place, prepare = None, self._prepare
        if len(ranks) > 1:
            place = self._reserve(len(ranks))
            prepare = functools.partial(begin_replica, self._group(ranks, place))
        declare: Any = ray.remote(
            **self._options(place),
            concurrency_groups=CONCURRENCY,
            max_restarts=-1,  # Ray starts a lost worker again, on another node if need be
            max_task_retries=0,  # the farm tries a task again
        )
        return declare(RayWorker).remote(ranks[0], self._runtime.nonfinite, prepare)

    def _reserve(self, processes: int) -> Any:
        """Let Ray reserve a placement group, if possible on one node."""
        place = placement_group([self._asked] * processes, strategy="PACK")
        self._resources.callback(_release, place)
        return place

    def _group(self, ranks: tuple[int, ...], place: Any) -> RayGroup:
        runtime = self._runtime
        seconds = runtime.start_timeout, runtime.liveness_timeout
        return RayGroup(ranks, self._options(place), self._prepare, *seconds)

    def _options(self, place: Any) -> dict[str, Any]:
        """Return what an actor reserves, and in which placement group, if in any."""
        named = {_NAMED[key]: value for key, value in self._asked.items() if key in _NAMED}
        others = {key: value for key, value in self._asked.items() if key not in _NAMED}
        options = {"num_cpus": 0, **named, "resources": others}
        if place is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(place)
        return options

    def say_what_lacks(self, transport: RayTransport) -> None:
        """Say which workers are not there yet, what they ask for and what the cluster has."""
        lacking = len(transport.may_join) - len(transport.there)
        if not lacking:
            return
        has, free = ray.cluster_resources(), ray.available_resources()
        asked = {key: value * self._groups.diagnostic for key, value in self._asked.items()}
        limit = self._runtime.wait_for_workers
        log.warning(
            "%d of %d workers are not there yet: each asks Ray for %s; the cluster has %s, of "
            "which %s are free%s",
            lacking,
            len(transport.may_join),
            _counted(asked, asked),
            _counted(has, asked),
            _counted(free, asked),
            "" if limit is None else f" (waiting at most {limit:g} s, runtime.wait_for_workers)",
        )


def _release(place: Any) -> None:
    """Give a placement group back; a cluster that is gone or does not answer is left alone."""
    wait([in_background(lambda: remove_placement_group(place), "distinf-release")], _END_SECONDS)


def _counted(resources: Mapping[str, float], keys: Iterable[str]) -> str:
    return ", ".join(f"{key} {resources.get(key, 0):g}" for key in keys)


def _room(groups: GroupSizes) -> int:
    """Return for how many workers GPUs are free; where none is, for how many there are any."""
    gpus = int(ray.available_resources().get("GPU", 0) or ray.cluster_resources().get("GPU", 0))
    return max(0, gpus - groups.prognostic + 1) // groups.diagnostic


def _prepare(threads: int, folder: str, modules: Sequence[str]) -> torch.device:
    """Set up the process of a worker, and return the device on which it computes."""
    if os.path.isdir(folder):  # for relative paths of models
        os.chdir(folder)
    # Ray hands on the script's folder only, and not what was added to it.
    sys.path += [place for place in modules if place not in sys.path]
    torch.set_num_threads(threads)
    process.keep_freed_memory()
    device = process.choose_device(ALONE)
    process.initialize_manager(ALONE, device, None)
    return device
