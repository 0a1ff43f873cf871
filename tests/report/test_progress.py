"""What is shown while a run goes on: what limits it, when it ends, which ranks are in trouble."""

import io
import re
import time
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest

from distinf.report import Event, Events, Progress, Status, progress
from distinf.report.progress import clock_time, next_line
from tests import waiting

until = partial(waiting.until, seconds=5.0)


class Screen(io.StringIO):
    """In place of a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


class Log(io.StringIO):
    """In place of a file or a notebook."""


def write_to(monkeypatch, stream):
    """Let what is shown go there; pytest changes `sys.stderr` itself."""
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))


@pytest.fixture(params=[Screen, Log])
def shown(request, monkeypatch):
    """What is shown on a terminal and in a log, drawn often."""
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.02)
    monkeypatch.setattr(progress, "_LINE_SHARE", 0.0)
    monkeypatch.setenv("COLUMNS", "300")
    stream = request.param()
    write_to(monkeypatch, stream)
    return stream


def write(events, times, kind="write"):
    for number, end in enumerate(times):
        events.record(Event(kind, f"a {number}", 0, end - 0.1, end))


def last(stream):
    return re.split(r"[\r\n]+", stream.getvalue().strip())[-1]


def test_it_says_that_the_run_waits_for_workers(shown):
    status = [Status(1, waiting="waiting for workers: 1 of 2")]
    with Progress(Events(), 3, status=lambda: status[0]):
        until(lambda: "waiting for workers: 1 of 2, workers busy 0/1" in last(shown))
        status[0] = Status(2, busy=1)
        until(lambda: "busy 1/2" in last(shown) and "waiting" not in last(shown))


def test_ranks_in_trouble_are_seen(shown):
    status = Status(2, lost=(3,), losses=1, silent={2: 12.3}, retried=2)
    with Progress(Events(), 3, status=lambda: status):
        words = "rank 3 lost, rank 2 silent for 12 s, 2 tasks tried again"
        until(lambda: words in last(shown))


def test_it_shows_the_limit_and_the_end(shown):
    events = Events()
    with Progress(events, 100, status=lambda: Status(2, 1)):
        until(lambda: "end not known yet" in shown.getvalue())
        now = time.time()
        write(events, [now - 1 + 0.1 * i for i in range(10)], "forecast")
        write(events, [now - 10 + i for i in range(10)])
        ends = time.strftime("%H:%M", time.localtime(now + 89))
        later = time.strftime("%H:%M", time.localtime(now + 95))
        until(lambda: f"ends {ends}" in last(shown) or f"ends {later}" in last(shown))
        assert "limited by the " in last(shown)


def test_tasks_that_were_there_before_do_not_make_the_pace():
    events = Events()
    with Progress(events, 100_100, done=100_000) as shown:
        assert shown.outlook().end is None
        write(events, [time.time() - 9 + i for i in range(10)])
        outlook = shown.outlook()
        assert (outlook.written, outlook.before) == (100_010, 100_000)
        assert outlook.end == pytest.approx(time.time() + 90, abs=3)


def test_a_chain_s_results_are_one_round():
    """Two workers give three results each, all at once, every ten seconds."""
    events = Events()
    with Progress(events, 60, status=lambda: Status(2, 2)) as shown:
        now = time.time()
        for i in range(4):
            write(events, [now - 30 + 10 * i] * 2, "diagnose")
            write(events, [now - 30 + 10 * i] * 6)
        assert shown.outlook().end == pytest.approx(now + 60, abs=3)


def test_after_a_loss_the_pace_is_measured_again(monkeypatch):
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.01)
    events, status = Events(), [Status(2, 2)]
    with Progress(events, 100, status=lambda: status[0]) as shown:
        write(events, [time.time() - 9 + i for i in range(10)])
        until(lambda: shown._workers == (2, 0))
        assert shown.outlook().end is not None
        status[0] = Status(1, 1, lost=(2,), losses=1)
        until(lambda: shown.outlook().end is None)
        write(events, [time.time() - 18 + 2 * i for i in range(10)])
        assert shown.outlook().end == pytest.approx(time.time() + 160, abs=3)


def test_a_log_gets_whole_plain_lines_and_a_terminal_a_bar(shown):
    events = Events()
    status = Status(3, 2, lost=(1,), losses=1, retried=1)
    with Progress(events, 20, status=lambda: status):
        write(events, [time.time() - 9 + i for i in range(10)])
        until(lambda: "10/20" in last(shown))
        write(events, [time.time()] * 10)
    text = shown.getvalue()
    assert "20/20 written" in last(shown)
    if isinstance(shown, Screen):
        assert "\r" in text
        assert "█" in text
        return
    assert text.endswith("\n")
    assert text.isascii()
    for line in text.splitlines():
        assert re.fullmatch(r"\[\d\d:\d\d:\d\d\] \d+/20 written \(\d+ %\), [ -~]+", line)
    assert not set(text) & set("\r\x1b\b")


def test_a_run_that_failed_does_not_say_when_it_ends(shown):
    events = Events()
    with Progress(events, 20, status=lambda: Status(2, 2, lost=(3,), losses=1)):
        write(events, [time.time() - 9 + i for i in range(10)])
        until(lambda: "ends " in last(shown))
    assert "10/20 written" in last(shown)
    assert "rank 3 lost" in last(shown)
    assert "ends" not in last(shown)
    assert "limited" not in last(shown)


def test_a_loss_is_logged_at_once(monkeypatch):
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.01)
    log, status = Log(), [Status(2)]
    write_to(monkeypatch, log)
    with Progress(Events(), 3, status=lambda: status[0]) as shown:
        until(lambda: shown._workers is not None)
        assert log.getvalue() == ""  # the next line is due in 10 s
        status[0] = Status(1, lost=(2,), losses=1)
        until(lambda: "rank 2 lost" in log.getvalue())
        assert log.getvalue().count("\n") == 1


def test_the_log_of_a_long_run_stays_short():
    lines = [0.0]
    while lines[-1] < 24 * 3600:
        lines.append(next_line(lines[-1], 0.0))
    assert lines[:3] == [0.0, 10.0, 20.0]
    assert 100 < len(lines) < 200
    assert max(b - a for a, b in pairwise(lines)) < 2 * 3600


def test_a_stream_that_is_closed_stops_nothing(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    log = Log()
    write_to(monkeypatch, log)
    events = Events()
    with Progress(events, 1):
        log.close()
        write(events, [time.time()])


def test_the_date_is_given_unless_it_is_today():
    noon = time.mktime((2026, 3, 4, 12, 0, 0, 0, 0, -1))
    assert clock_time(noon + 3600, noon) == "13:00"
    assert clock_time(noon + 24 * 3600, noon) == "2026-03-05 12:00"
