"""Which carrier a session takes: from the facts of all ranks, and from trials of any end."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from distinf.errors import ConfigError
from distinf.session.network import listen
from distinf.session.peers import shared_gpus
from distinf.transport import Peer, carrier, choose_carrier, device_maps
from distinf.transport.carrier import ENDED, choose_from_trial, choose_without_trial

A, B, C = "GPU-a", "GPU-b", "GPU-c"
UNSEEN = 'terminate called after throwing\\n  what():  "Couldn\'t find GPU with UUID 9b96"'


def ranks(*gpus, visible=None):
    """One rank on each GPU ("" for none); all see all, or what is said."""
    everything = sorted({gpu for gpu in gpus if gpu})
    peers = []
    for rank, gpu in enumerate(gpus):
        sees = visible[rank] if visible else everything
        device = f"cuda:{sees.index(gpu)}" if gpu else "cpu"
        peers.append(Peer(rank, device, tuple(sees) if gpu else (), node="n1"))
    return peers


MASKED = ranks(A, B, C, visible=[[A], [B], [C]])


@pytest.mark.parametrize(
    ("wanted", "peers", "one_node", "why"),
    [
        ("host", ranks(A, B), True, "runtime.carrier=host"),
        ("auto", ranks("", ""), True, "all ranks are without a GPU"),
        ("auto", ranks(A, "", B), True, "rank 1 is without a GPU"),
        ("auto", ranks("", A, ""), True, "ranks 0 and 2 are without a GPU"),
        ("auto", ranks(A, B), False, "several nodes"),
    ],
)
def test_the_clear_cases_need_no_trial(wanted, peers, one_node, why):
    choice = choose_without_trial(wanted, peers, one_node)
    assert choice.carrier == "host"
    assert why in choice.why


@pytest.mark.parametrize(
    ("wanted", "peers", "one_node"),
    [
        ("auto", ranks(A, B), True),
        ("auto", ranks(A, A, A), True),  # several ranks on one GPU
        ("auto", MASKED, True),
        ("cuda", ranks(A, B), False),
    ],
)
def test_the_others_are_tried(wanted, peers, one_node):
    assert choose_without_trial(wanted, peers, one_node) is None


def test_device_to_device_only_if_all_came_through():
    assert choose_from_trial("auto", ranks(A, B), ["", ""]).carrier == "cuda"
    choice = choose_from_trial("auto", MASKED, [ENDED, ENDED, "it was ended by SIGABRT: none"])
    assert choice.carrier == "host"
    assert "ranks 0 and 1 see different GPUs" in choice.why
    assert "on rank 2 it was ended by SIGABRT: none" in choice.why
    assert choose_from_trial("auto", ranks(A, B), ["", ENDED]).carrier == "host"


def test_all_see_the_same_gpus_in_another_order():
    peers = ranks(A, B, visible=[[A, B], [B, A]])
    assert "see different" not in choose_from_trial("auto", peers, ["", "it failed: x"]).why


@pytest.mark.parametrize(
    "outcomes", [["", "it failed: out of verbs"], ["it failed: out of verbs", ""]]
)
def test_what_was_asked_for_and_fails_is_an_error(outcomes):
    with pytest.raises(ConfigError, match=r"runtime.carrier=cuda.*out of verbs.*carrier=host"):
        choose_from_trial("cuda", ranks(A, B), outcomes)
    with pytest.raises(ConfigError, match=r"runtime.carrier=cuda.*rank 1 is without a GPU"):
        choose_without_trial("cuda", ranks(A, ""), True)


def test_each_rank_maps_its_device_to_those_it_talks_to():
    peers = ranks(A, B, A)
    zero, one = torch.device("cuda:0"), torch.device("cuda:1")
    assert device_maps(0, peers) == {1: {zero: one}, 2: {zero: zero}}
    assert device_maps(1, peers) == {0: {one: zero}}


def test_ranks_that_share_a_gpu_are_named():
    assert shared_gpus(ranks(A, B, C)) == ""
    assert shared_gpus(MASKED) == ""  # all of them are cuda:0
    assert shared_gpus(ranks("", "")) == ""
    assert "share one GPU each: 0, 2; 1, 3." in shared_gpus(ranks(A, B, A, B))


@pytest.fixture
def store():
    listener = listen("127.0.0.1")
    port = listener.getsockname()[1]
    tcp = dist.TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return dist.PrefixStore("session", tcp)


def choices(monkeypatch, store, peers, scripts, wanted="auto", seconds=120.0):
    """What each rank chooses, with each one's trial replaced by a Python script."""
    run = f"import json, sys; exec({scripts!r}[json.loads(sys.argv[-1])['rank']])"
    monkeypatch.setattr(carrier, "_COMMAND", [sys.executable, "-c", run])
    until = time.monotonic() + seconds

    def rank(number):
        # A client of its own, since a store serves one thread at a time.
        tcp = store.underlying_store
        own = dist.PrefixStore("session", dist.TCPStore(tcp.host, tcp.port, wait_for_workers=False))
        return choose_carrier(wanted, peers, number, own, True, until)

    with ThreadPoolExecutor(len(peers)) as pool:
        return list(pool.map(rank, range(len(peers))))


PASS = "pass"
WAIT = "import time; time.sleep(600)"
ABORT = f"import os, sys; sys.stderr.write('''{UNSEEN}'''); sys.stderr.flush(); os.abort()"


@pytest.mark.parametrize(
    ("scripts", "way", "words"),
    [
        ([PASS, PASS], "cuda", ["tried between all ranks"]),
        # The others are ended at once, not left to wait for the one that is gone.
        ([WAIT, ABORT, WAIT], "host", ["on rank 1", "SIGABRT", "Couldn't find GPU with UUID 9b96"]),
        ([PASS, "raise OSError('verbs')"], "host", ["on rank 1 it failed: OSError: verbs"]),
        ([PASS, "import sys; sys.exit(3)"], "host", ["on rank 1 it failed: it said nothing"]),
    ],
)
def test_a_trial_may_end_in_any_way(monkeypatch, store, scripts, way, words):
    began = time.monotonic()
    chosen = choices(monkeypatch, store, ranks(*[A] * len(scripts)), scripts)
    assert time.monotonic() - began < 40
    assert len(set(chosen)) == 1
    assert chosen[0].carrier == way
    for word in words:
        assert word in chosen[0].why


@pytest.mark.slow
def test_a_trial_has_a_deadline(monkeypatch, store):
    chosen = choices(monkeypatch, store, ranks(A, A), [WAIT, WAIT], seconds=4.0)
    assert {choice.carrier for choice in chosen} == {"host"}
    assert "did not end within 2 s" in chosen[0].why


@pytest.mark.slow
def test_a_trial_ends_with_its_rank():
    """It would wait ten minutes for a store that is not there."""
    rank = subprocess.Popen([sys.executable, "-c", ""])
    rank.wait(60)
    facts = {"rank": 0, "peers": [{"rank": 0}, {"rank": 1}], "name": "", "seconds": 600.0}
    facts.update(address=["127.0.0.1", 1], parent=rank.pid)
    child = subprocess.Popen([*carrier._COMMAND, json.dumps(facts)], stderr=subprocess.DEVNULL)
    try:
        assert child.wait(120) == 1
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
def test_the_real_trial_carries_tensors_both_ways(store):
    """With real processes and the real transport; the devices are CPUs, whose maps are empty."""
    tcp, peers = store.underlying_store, ranks("", "")
    listed = [dataclasses.asdict(peer) for peer in peers]
    facts = {"peers": listed, "address": [tcp.host, tcp.port], "name": "t", "seconds": 100.0}

    def rank(number):
        own = dist.PrefixStore("session", dist.TCPStore(tcp.host, tcp.port, wait_for_workers=False))
        mine = {**facts, "rank": number, "several_nodes": False, "parent": os.getpid()}
        return carrier._try(mine, own)

    with ThreadPoolExecutor(len(peers)) as pool:
        assert list(pool.map(rank, range(len(peers)))) == ["", ""]
