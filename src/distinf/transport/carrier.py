"""Chooses how tensors travel, the carrier: device to device only after a trial has succeeded.

TensorPipe ends the whole process where GPUs cannot see each other ("Couldn't find GPU with UUID",
pytorch#95487, tensorpipe#412) or where a network device cannot be used (tensorpipe#413). This
happens only when a tensor travels. So each rank starts a process for a trial, and all ranks choose
from the outcomes of all trials.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from distinf.errors import ConfigError
from distinf.parent import when_parent_ends
from distinf.transport.contract import Call, Choice, Peer
from distinf.transport.rpc import RpcTransport, join_rpc
from distinf.transport.worker import Worker

_TRIAL_SECONDS = 60.0  # torch's import, a CUDA context and a group of processes, on a busy machine
_POLL_SECONDS = 0.05
_REPORT_SECONDS = 5.0  # beyond the trial's own deadline
# Below and above TensorPipe's slot of 8 MiB and its staging area of 32 MiB.
_SIZES = (1_000, 12_000_000)
ENDED = "-"  # outcome of a trial that was only ended because another rank's had failed
# Runs one rank's trial; its facts are added as JSON.
_COMMAND = [sys.executable, "-c", "from distinf.transport.carrier import run_trial; run_trial()"]


def choose_carrier(
    wanted: str,
    peers: Sequence[Peer],
    rank: int,
    store: dist.Store,
    on_one_node: bool,
    deadline: float,
    between_workers: bool = False,
) -> Choice:
    """Choose the carrier of a session; every rank calls this at the same time.

    ``wanted`` is ``runtime.carrier``; ``between_workers``: they send to each other, too;
    ``deadline`` is that of the session's start, on the monotonic
    clock: a trial takes at most half of the time left. All ranks get the same choice, or a
    `ConfigError` if ``runtime.carrier=cuda`` does not work.
    """
    choice = choose_without_trial(wanted, peers, on_one_node, between_workers)
    if choice is not None:
        return choice
    seconds = max(1.0, min(_TRIAL_SECONDS, (deadline - time.monotonic()) / 2))
    if rank == 0:
        store.set("trial/name", uuid.uuid4().hex)
    server: Any = store
    while hasattr(server, "underlying_store"):
        server = server.underlying_store
    facts = {
        "rank": rank,
        "peers": [dataclasses.asdict(peer) for peer in peers],
        "address": [server.host, server.port],
        "name": store.get("trial/name").decode(),
        "several_nodes": not on_one_node,
        "between_workers": between_workers,
        "seconds": seconds,
        "parent": os.getpid(),
    }
    store.set(f"trial/{rank}", _try(facts, store))
    keys = [f"trial/{peer.rank}" for peer in peers]
    until = time.monotonic() + seconds + _REPORT_SECONDS
    while not store.check(keys) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    outcomes = [
        store.get(key).decode() if store.check([key]) else "its rank did not say" for key in keys
    ]
    return choose_from_trial(wanted, peers, outcomes)


def device_maps(
    rank: int, peers: Sequence[Peer], between_workers: bool = False
) -> dict[int, dict[torch.device, torch.device]]:
    """Return, for each peer that this rank sends to, its device for tensors of our device.

    Workers send to rank 0, and with ``between_workers`` to each other.
    """
    mine = torch.device(peers[rank].device)
    others: Sequence[int] = range(1, len(peers)) if rank == 0 else [0]
    if between_workers:
        others = [peer.rank for peer in peers if peer.rank != rank]
    return {other: {mine: torch.device(peers[other].device)} for other in others}


# The choice itself; it knows no process.


def choose_without_trial(
    wanted: str, peers: Sequence[Peer], on_one_node: bool, between_workers: bool = False
) -> Choice | None:
    """Choose the carrier where no trial is needed; None: a trial is needed."""
    if wanted == "host":
        return Choice("host", "runtime.carrier=host")
    without = [peer.rank for peer in peers if not peer.device.startswith("cuda")]
    if without:
        return _refused(wanted, f"{_ranks(without, len(peers))} without a GPU")
    first = {peer.host: peer for peer in reversed(peers)}
    for peer in peers if between_workers else ():  # the trial goes by rank 0 only
        other = first[peer.host]
        if sorted(peer.visible) != sorted(other.visible):
            why = f"ranks {other.rank} and {peer.rank} see different GPUs"
            return _refused(wanted, f"{why}, and with several drivers workers send to each other")
    if not on_one_node and wanted == "auto":
        return Choice(
            "host", "the ranks are on several nodes (runtime.carrier=cuda tries between them, too)"
        )
    return None


def choose_from_trial(wanted: str, peers: Sequence[Peer], outcomes: Sequence[str]) -> Choice:
    """Choose the carrier from the outcomes of all trials, the same on every rank.

    An outcome is the reason why a rank's trial failed, empty if it did not, or `ENDED`.
    """
    failed = {
        peer.rank: outcome
        for peer, outcome in zip(peers, outcomes, strict=True)
        if outcome not in ("", ENDED)
    }
    if not failed and ENDED not in outcomes:
        return Choice("cuda", "tried between all ranks")
    said = [f"on rank {rank} {why}" for rank, why in failed.items()] or ["the trial was ended"]
    more = f", and on {len(said) - 1} more" if len(said) > 1 else ""
    why = f"device to device was tried, and {said[0]}{more}"
    for peer in peers:
        if sorted(peer.visible) != sorted(peers[0].visible):
            why = f"ranks {peers[0].rank} and {peer.rank} see different GPUs ({why})"
            break
    return _refused(wanted, why)


def _refused(wanted: str, why: str) -> Choice:
    if wanted == "cuda":
        raise ConfigError(
            f"runtime.carrier=cuda does not work here: {why}. Use runtime.carrier=host or auto"
        )
    return Choice("host", why)


def _ranks(ranks: Sequence[int], world_size: int) -> str:
    if len(ranks) == world_size:
        return "all ranks are"
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]} are"


# A rank's trial, seen from that rank.


def _try(facts: dict[str, Any], store: dist.Store) -> str:
    """Run this rank's trial to its end; return why it failed, empty if it did not."""
    seconds, ranks = facts["seconds"], range(len(facts["peers"]))
    others = [f"trial/{other}" for other in ranks if other != facts["rank"]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [*_COMMAND, json.dumps(facts)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )
        until = time.monotonic() + seconds
        outcome = ""
        try:
            while child.poll() is None and not outcome:
                if time.monotonic() > until:
                    outcome = f"it did not end within {seconds:.0f} s"
                elif any(store.check([key]) and store.get(key) for key in others):
                    outcome = ENDED
                time.sleep(_POLL_SECONDS)
        finally:
            child.kill()
            child.wait()
        if outcome or child.returncode == 0:
            return outcome
        output.seek(0)
        reason = _reason_in(output.read().decode(errors="replace"))
    if child.returncode < 0:
        return f"it was ended by {signal.Signals(-child.returncode).name}: {reason}"
    return f"it failed: {reason}"


def _reason_in(output: str) -> str:
    """Return the line of a process's output that says why it ended; C++ marks it ``what():``."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marked = [line.split("what():", 1)[1].strip() for line in lines if "what():" in line]
    return (marked or lines or ["it said nothing"])[-1][:300]


# The process of a trial.


def run_trial() -> NoReturn:
    """Try device to device for one rank; ends the process."""
    facts = json.loads(sys.argv[-1])
    when_parent_ends(facts["parent"], lambda: os._exit(1))
    try:
        _carry(facts)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    # RPC is not shut down: a rank that is still busy with a channel must not delay the others.
    os._exit(0)


def _carry(facts: dict[str, Any]) -> None:
    """Join a group of all ranks' trials, and carry tensors from rank 0 to each and back."""
    peers = [Peer(**peer) for peer in facts["peers"]]
    rank, seconds = facts["rank"], facts["seconds"]
    device = torch.device(peers[rank].device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    worker = Worker(rank, device)
    worker.results_stay = True
    timeout = timedelta(seconds=seconds)
    host, port = facts["address"]
    store = dist.PrefixStore(
        f"trial/{facts['name']}",
        dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout),
    )
    maps = device_maps(rank, peers, facts["between_workers"]) if device.type == "cuda" else {}
    join_rpc(worker, len(peers), store, maps, seconds, facts["several_nodes"])
    if rank != 0:
        store.wait(["carried"], timeout)
        return
    choice = Choice("cuda" if maps else "host", "")
    transport = RpcTransport(worker, len(peers), store, choice, results_stay=True)
    for other in transport.workers:
        transport.send(other, Call(0, "__build__", args=(Reversed,)), seconds).result(seconds)
        for size in _SIZES:
            sent = torch.arange(size, dtype=torch.int32, device=device) + other
            call = Call(0, "__forward__", "the trial", (sent,))
            reply = transport.send(other, call, seconds).result(seconds)
            if reply.failure is not None:
                raise RuntimeError(f"rank {other}: {reply.failure.message}")
            received = reply.value
            if received.device != device or not torch.equal(received.cpu(), sent.cpu().flip(0)):
                raise RuntimeError(f"a tensor from rank {other} has other values than were sent")
    store.set("carried", "")


class Reversed:
    """Returns a tensor reversed, which shows that both ways carry its bytes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reverse a tensor of one dimension."""
        return x.flip(0)
