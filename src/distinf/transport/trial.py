"""Which carrier a session takes: device to device only after it has been seen to work.

TensorPipe ends the whole process where GPUs cannot see each other ("Couldn't find GPU with UUID",
pytorch#95487, tensorpipe#412) or where a network device cannot be used (tensorpipe#413), and only
tells when tensors travel. So each rank lets a process of its own try it, and all ranks look at what
became of all of these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from distinf.transport.carrier import ENDED, Choice, conclude, device_maps, foresee
from distinf.transport.contract import Peer

__all__ = ["choose_carrier", "run", "trial_command"]

_TRIAL_SECONDS = 60.0  # torch's import, a CUDA context and a group of processes, on a busy machine
_POLL_SECONDS = 0.05
_REPORT_SECONDS = 5.0  # beyond the trial's own deadline
# Below and above TensorPipe's slot of 8 MiB and its staging area of 32 MiB.
_SIZES = (1_000, 12_000_000)


def choose_carrier(
    wanted: str,
    peers: Sequence[Peer],
    rank: int,
    store: dist.Store,
    on_one_node: bool,
    deadline: float,
    command: Sequence[str] = (),
) -> Choice:
    """Choose the carrier of a session; every rank calls this at the same time.

    Parameters
    ----------
    wanted, peers, on_one_node
        As in :func:`foresee`.
    rank : int
        Of this process.
    store : torch.distributed.Store
        The session's.
    deadline : float
        Of the session's start, on the monotonic clock. A trial takes at most half of what is left.
    command : Sequence[str], optional
        What a trial runs, by default :func:`trial_command`.

    Returns
    -------
    Choice
        The same on every rank.

    Raises
    ------
    ConfigError
        If ``runtime.carrier=cuda`` does not work, on every rank.
    """
    choice = foresee(wanted, peers, on_one_node)
    if choice is not None:
        return choice
    seconds = max(1.0, min(_TRIAL_SECONDS, (deadline - time.monotonic()) / 2))
    if rank == 0:
        store.set("trial/name", uuid.uuid4().hex)
    facts = {
        "rank": rank,
        "peers": [dataclasses.asdict(peer) for peer in peers],
        "address": _address_of(store),
        "name": store.get("trial/name").decode(),
        "several_nodes": not on_one_node,
        "seconds": seconds,
    }
    mine = _try(list(command) or trial_command(), facts, rank, len(peers), store, seconds)
    store.set(f"trial/{rank}", mine)
    keys = [f"trial/{peer.rank}" for peer in peers]
    until = time.monotonic() + seconds + _REPORT_SECONDS
    while not store.check(keys) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    outcomes = [
        store.get(key).decode() if store.check([key]) else "its rank did not say" for key in keys
    ]
    return conclude(wanted, peers, outcomes)


def trial_command() -> list[str]:
    """Command of one rank's trial, to which what it has to know is added as JSON."""
    return [sys.executable, "-c", "from distinf.transport.trial import run; run()"]


def _address_of(store: Any) -> list[Any]:
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return [store.host, store.port] if hasattr(store, "port") else []


def _try(
    command: list[str],
    facts: dict[str, Any],
    rank: int,
    world_size: int,
    store: dist.Store,
    seconds: float,
) -> str:
    """Run this rank's trial to its end; return why it failed, empty if it did not."""
    others = [f"trial/{other}" for other in range(world_size) if other != rank]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [*command, json.dumps(facts)],
            stdin=subprocess.PIPE,  # its end tells the trial that this rank has ended
            stdout=said,
            stderr=said,
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
            if child.poll() is None:
                child.kill()
            child.wait()
            assert child.stdin is not None
            child.stdin.close()
        said.seek(0)
        if outcome or child.returncode == 0:
            return outcome
        return f"{_ending(child.returncode)}: {_last_words(said.read().decode(errors='replace'))}"


def _ending(status: int) -> str:
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return "it failed"


def _last_words(said: str) -> str:
    """Pick what says why out of what a process printed; C++ says it behind ``what()``."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    wanted = [line.split("what():", 1)[1].strip() for line in lines if "what():" in line]
    return (wanted or lines or ["it said nothing"])[-1][:300]


def run() -> NoReturn:
    """Try device to device for one rank; ends the process."""
    facts = json.loads(sys.argv[-1])

    def follow() -> None:
        with contextlib.suppress(OSError):
            sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    try:
        _carry(facts)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    # No leave is taken: whoever is still busy with a channel may not hold the others up.
    os._exit(0)


def _carry(facts: dict[str, Any]) -> None:
    """Join a group of all ranks' trials, and carry tensors from rank 0 to each and back."""
    from distinf.transport import rpc
    from distinf.transport.contract import Call
    from distinf.transport.worker import Worker

    peers = [Peer(**peer) for peer in facts["peers"]]
    rank, seconds = facts["rank"], facts["seconds"]
    device = torch.device(peers[rank].device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    worker = Worker(rank, device)
    worker.results_stay = True
    patience = timedelta(seconds=seconds)
    host, port = facts["address"]
    store = dist.PrefixStore(
        f"trial/{facts['name']}",
        dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=patience),
    )
    maps = device_maps(rank, peers) if device.type == "cuda" else {}
    rpc.join_rpc(worker, len(peers), store, maps, seconds, facts["several_nodes"])
    if rank != 0:
        store.wait(["carried"], patience)
        return
    transport = rpc.RpcTransport(
        worker, len(peers), store, Choice("cuda" if maps else "host", ""), results_stay=True
    )
    for other in transport.workers:
        transport.send(other, Call(0, "__build__", args=(Turned,)), seconds).result(seconds)
        for size in _SIZES:
            sent = torch.arange(size, dtype=torch.int32, device=device) + other
            call = Call(0, "__forward__", "the trial", (sent,))
            reply = transport.send(other, call, seconds).result(seconds)
            if reply.failure is not None:
                raise RuntimeError(f"rank {other}: {reply.failure.message}")
            came = reply.value
            if came.device != device or not torch.equal(came.cpu(), sent.cpu().flip(0)):
                raise RuntimeError(f"a tensor did not come back whole from rank {other}")
    store.set("carried", "")


class Turned:
    """Gives a tensor back turned round, so that both ways are seen to carry its bytes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reverse a tensor of one dimension."""
        return x.flip(0)
