"""Ranks that are missing, doubled, of another job or of another mind are named on every rank."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
import torch.distributed as dist

from distinf.errors import ConfigError, SessionError
from distinf.session import peers
from distinf.session.launcher import RankInfo
from distinf.transport import Peer

CPU = torch.device("cpu")


def info(rank, size=2, **more):
    return RankInfo("slurm", rank, size, 0, 1, **{"job": "a", "hosts": ("n1", "n2"), **more})


def outcome(store, where, seconds=5.0, **more):
    try:
        return peers.gather(store, where, CPU, time.monotonic() + seconds, **more)
    except Exception as error:
        return error


def together(*ranks):
    """Let ranks meet; each is (place, keywords)."""
    store = dist.HashStore()
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda rank: outcome(store, rank[0], **rank[1]), ranks))


def test_all_learn_of_all():
    both = together((info(0), {"must_match": {"a": 1}}), (info(1), {"must_match": {"a": 1}}))
    assert [peer.rank for peer in both[0]] == [0, 1]
    assert both[0] == both[1]


def test_a_rank_may_give_nothing_to_compare():
    both = together((info(0), {"must_match": {"a": 1}}), (info(1), {}))
    assert both[0] == both[1]


def test_who_is_missing_is_named_with_the_node(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    began = time.monotonic()
    (error,) = together((info(0), {"seconds": 0.5}))
    assert time.monotonic() - began < 3
    for word in ("rank(s) [1] of 2", "never arrived", "node(s) n2", "start_timeout", "Likely"):
        assert word in str(error)
    assert isinstance(error, SessionError)


def test_the_others_hear_what_the_driver_found():
    present = (info(0, 3), {"seconds": 0.5}), (info(1, 3), {"seconds": 20})
    first, second = together(*present)
    assert "rank(s) [2] of 3" in str(first)
    assert "refused" in str(second)
    assert "rank(s) [2] of 3" in str(second)


def test_different_settings_are_named_on_every_rank():
    for error in together(
        (info(0), {"must_match": {"nsteps": 2, "same": 1}}),
        (info(1), {"must_match": {"nsteps": 3, "same": 1}}),
    ):
        assert isinstance(error, ConfigError)
        for word in ("nsteps is 3 on rank 1", "2 on rank 0"):
            assert word in str(error)


def test_different_versions_are_named(monkeypatch):
    there = threading.local()
    monkeypatch.setattr(peers, "versions", lambda names: dict.fromkeys(names, there.version))

    def rank(store, where, version):
        there.version = version
        return outcome(store, where)

    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(rank, store, info(r), v) for r, v in ((0, "1.0"), (1, "1.1"))]
        for task in tasks:
            assert "version of distinf is 1.1 on rank 1" in str(task.result())


def test_two_processes_of_one_rank_are_named():
    store = dist.HashStore()
    outcome(store, info(1), seconds=0)
    error = outcome(store, info(1), must_match={"other": 1})
    for word in ("two processes are rank 1", "MASTER_PORT"):
        assert word in str(error)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (info(1, job="b"), ["rank 1 on", "another job", "its launch is b", "rank 0 on"]),
        (info(1, 1 + 1, job=""), ["unknown"]),
    ],
)
def test_a_rank_of_another_job_is_named(other, words):
    for error in together((info(0), {}), (other, {})):
        assert isinstance(error, SessionError)
        for word in words:
            assert word in str(error)


def test_another_world_size_is_named():
    store = dist.HashStore()
    outcome(store, info(1, 3), seconds=0)
    error = outcome(store, info(0))
    assert "its world size is 3, that of rank 0" in str(error)


def test_a_refusal_is_heard():
    store = dist.HashStore()
    peers.refuse(store, "wrong key")
    assert "wrong key" in str(outcome(store, info(1)))


def test_an_ended_process_is_named():
    own = dataclasses.replace(info(0), launcher="distinf")
    error = outcome(dist.HashStore(), own, ended=lambda: {1: "its process ended"})
    assert "rank 1 did not start: its process ended" in str(error)


@pytest.mark.parametrize("who", ["it", "another host", "another process by now"])
def test_only_the_process_that_introduced_itself_is_ended(who):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        os.kill(process.pid, signal.SIGSTOP)
        host, created = socket.gethostname(), psutil.Process(process.pid).create_time()
        if who == "another host":
            host += "2"
        if who == "another process by now":
            created -= 10
        peers.end_if_here(Peer(1, host=host, pid=process.pid, created=created))
        if who == "it":
            assert process.wait(10) == -signal.SIGKILL
        else:
            os.kill(process.pid, signal.SIGCONT)
            process.communicate(b"\n", timeout=10)
            assert process.returncode == 0
