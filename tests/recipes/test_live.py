"""What a run says of itself while it goes on, as a user sees it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from testing.application import environment, finish, python_main, start, torchrun_main
from testing.preloaded import run_main
from testing.scraping import Samples, scrape
from tests.ranks.conftest import leaving_nothing

STEPS = 11
SMALL = (
    *("prognostic.nlat=32", "prognostic.nlon=64", "recipe=diagnostic", "runtime.nproc=3"),
    *("~diagnostic.wind_decomposition", "~diagnostic.error_growth", f"parameters.nsteps={STEPS}"),
    "+diagnostic.faulty._target_=testing.faulty.Faulty",
    "parameters.output_path=out.zarr",
)
LINE = re.compile(r"\[\d\d:\d\d:\d\d\] \d+/12 written \(\d+ %\), [ -~]+")


def faulty(seconds: float) -> tuple[str, ...]:
    """Return overrides of a run whose calls take so long."""
    return *SMALL, "+diagnostic.faulty.faults={}", f"+diagnostic.faulty.seconds={seconds}"


@pytest.fixture
def marked() -> Iterator[dict[str, str]]:
    """Environment of a run that must leave no process."""
    with leaving_nothing(30) as marks:
        yield marks


def assert_plain(err: str) -> list[str]:
    """Return the lines of a log, each whole and without control characters."""
    assert err.endswith("\n")
    assert err.isascii()
    assert not set(err) & set("\r\x1b\b")
    lines = err.splitlines()
    assert all(LINE.fullmatch(line) for line in lines), err
    return lines


@pytest.mark.slow
def test_without_a_terminal_it_prints_plain_lines(tmp_path: Path) -> None:
    done = run_main(*faulty(0.0), folder=tmp_path)
    assert done.status == 0, done.err
    lines = assert_plain(done.err)
    assert "12/12 written (100 %)" in lines[-1]
    assert "forecast 12, diagnosed 12" in lines[-1]
    assert "prometheus" not in done.out
    assert "metrics" not in done.out


@pytest.mark.slow
def test_a_long_run_says_when_it_ends_and_what_limits_it(
    tmp_path: Path, marked: dict[str, str]
) -> None:
    done = run_main(*faulty(3.0), folder=tmp_path, **marked)
    assert done.status == 0, done.err
    lines = assert_plain(done.err)
    assert 2 <= len(lines) <= 4, done.err
    assert any(
        "limited by the diagnostics" in line and re.search(r"ends \d\d:\d\d,", line)
        for line in lines[:-1]
    ), done.err


def events_of(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("outputs/*/*/events.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_killed_worker_is_named_at_once(tmp_path: Path, marked: dict[str, str]) -> None:
    """Sent by nobody of the run: what the kernel does when memory is short."""
    process = start(python_main(*faulty(0.5), "runtime.metrics_port=0"), tmp_path, **marked)
    port = metrics_port(process)
    until_sample(process, port, ("distinf_operations_total", ("kind", "diagnose")), 2)
    (worker, *_) = workers_of(process.pid)
    worker.send_signal(signal.SIGKILL)
    lost = until_sample(process, port, ("distinf_workers_lost_total",), 1)
    assert lost["distinf_workers",] == 1
    done = finish(process, 120)
    assert done.status == 0, done.err
    lines = assert_plain(done.err)
    first = next(line for line in lines if "lost" in line)
    assert re.search(r"rank [12] lost", first)
    assert "12/12" not in first
    assert re.search(r"[12] tasks? tried again", lines[-1])
    assert "rank 1 lost" in lines[-1] or "rank 2 lost" in lines[-1]
    (told,) = (event for event in events_of(tmp_path) if event["kind"] == "lost")
    assert told["rank"] in (1, 2)
    assert re.match("its (connection|process) ended", told["task"])


@pytest.mark.slow
def test_metrics_of_a_run(tmp_path: Path, marked: dict[str, str]) -> None:
    process = start(python_main(*faulty(0.4), "runtime.metrics_port=0"), tmp_path, **marked)
    port = metrics_port(process)
    seen = []
    listening: set[str] = set()
    while process.poll() is None:
        try:
            seen.append(scrape(port))
        except (urllib.error.URLError, ConnectionError):  # it ends with the run
            break
        listening |= addresses(process.pid, port)
        time.sleep(0.05)
    done = finish(process, 60)
    assert done.status == 0, done.err
    assert listening == {"127.0.0.1"}
    assert seen[0]["distinf_limited_by", ("distinf_limited_by", "loading")] == 1
    assert ("distinf_tasks",) not in seen[0]
    running = [samples for samples in seen if ("distinf_tasks",) in samples]
    assert all(samples["distinf_tasks",] == 12 for samples in running)
    assert max(samples["distinf_workers_busy",] for samples in running) == 2
    assert max(samples["distinf_tasks_queued",] for samples in running) == 2
    limit = ("distinf_limited_by", ("distinf_limited_by", "diagnostics"))
    assert any(samples[limit] == 1 for samples in running)
    for name in ("distinf_tasks_written_total", "distinf_workers_lost_total"):
        counts = [samples[name,] for samples in running]
        assert counts == sorted(counts)
    last = running[-1]
    assert last["distinf_tasks_written_total",] >= 8
    assert last["distinf_operations_total", ("kind", "forecast")] == 12
    assert last["distinf_moved_bytes_total", ("direction", "to_workers")] > 12 * 32 * 64 * 4 / 2
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        scrape(port)


@pytest.mark.parametrize("ranks", ["own", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_port_in_use_is_refused_before_anything_loads(
    tmp_path: Path, marked: dict[str, str], ranks: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = (
            *faulty(0.0),
            "+diagnostic.faulty.constructor=hang",
            f"runtime.metrics_port={port}",
        )
        command = python_main(*words)
        if ranks == "torchrun":
            command = torchrun_main(3, "--config-name=shallow_water", *words)
        done = finish(start(command, tmp_path, **marked), 100)
    assert done.status == 1
    assert done.err.count(f"distinf: error: runtime.metrics_port={port}: ") == 1
    assert "Address already in use" in done.err
    if ranks == "own":
        assert "Traceback" not in done.err
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.slow
def test_a_terminal_shows_a_bar(tmp_path: Path, marked: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    subprocess.run(["stty", "cols", "160", "rows", "40"], stdin=theirs, check=True)
    process = subprocess.Popen(
        python_main(*faulty(0.4)),
        cwd=tmp_path,
        env=environment(**marked, LC_ALL="C.UTF-8"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    assert process.wait(30) == 0, shown
    bars = [bar for bar in shown.decode().split("\r") if "written" in bar]
    assert len(bars) > 5
    assert "█" in bars[-1]
    assert "12/12 written" in bars[-1]
    middle = "".join(bars[1:-1])
    assert re.search(r"ends \d\d:\d\d, limited by the diagnostics, workers busy 2/2", middle), (
        middle
    )
    assert len({re.search(r"(\d+)/12", bar)[1] for bar in bars}) > 3  # type: ignore[index]


def metrics_port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"metrics: http://127\.0\.0\.1:(\d+)/metrics", line):
            return int(found[1])
    raise AssertionError(process.communicate())


def until_sample(
    process: subprocess.Popen[str], port: int, name: tuple[object, ...], least: float
) -> Samples:
    deadline = time.monotonic() + 60
    while True:
        samples = scrape(port)
        if samples.get(name, 0) >= least:  # type: ignore[call-overload]
            return samples
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, samples
        time.sleep(0.05)


def workers_of(pid: int) -> list[psutil.Process]:
    """Return the processes that rank 0 started and that have connections: its workers."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if child.net_connections("tcp")]


def addresses(pid: int, port: int) -> set[str]:
    """Return where a process listens on a port."""
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return set()
    return {c.laddr.ip for c in found if c.status == "LISTEN" and c.laddr.port == port}
