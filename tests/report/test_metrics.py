"""Metrics as Prometheus reads them."""

import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing

import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from distinf.errors import ConfigError
from distinf.report import Event, Events, MetricsServer, Progress, Status
from testing.scraping import scrape, text

STATUS = Status(3, 2, queued=1, lost=(4,), losses=2, silent={1: 20.0}, retried=5)


@pytest.fixture
def server():
    with closing(MetricsServer(0)) as server:
        yield server


def fill(events):
    events.record(Event("forecast", "step 0", 0, 0.0, 2.5))
    events.record(Event("diagnose", "a 0", 1, 2.5, 4.0, nbytes=100, nbytes_out=40))
    events.record(Event("diagnose", "a 1", 3, 3.0, 6.0, nbytes=200, nbytes_out=50))
    events.record(Event("write", "a 0", 0, 6.0, 6.5, nbytes=40))


def test_they_are_the_totals_of_the_events(server):
    events = Events()
    server.follow(lambda: events, lambda: STATUS)
    fill(events)
    found = scrape(server.port)
    assert found["distinf_operations_total", ("kind", "diagnose")] == 2
    assert found["distinf_operations_total", ("kind", "read")] == 0
    assert found["distinf_operation_seconds_total", ("kind", "forecast")] == 2.5
    assert found["distinf_moved_bytes_total", ("direction", "to_workers")] == 300
    assert found["distinf_moved_bytes_total", ("direction", "from_workers")] == 90
    assert found["distinf_moved_bytes_total", ("direction", "written")] == 40
    assert found["distinf_calls_total", ("rank", "1")] == 1
    assert found["distinf_busy_seconds_total", ("rank", "3")] == 3.0


def test_they_say_what_the_workers_do(server):
    server.follow(Events, lambda: STATUS)
    found = scrape(server.port)
    names = ["workers", "workers_busy", "tasks_queued", "workers_silent", "workers_lost_total"]
    assert [found[f"distinf_{name}",] for name in names] == [3, 2, 1, 1, 2]
    assert found["distinf_tasks_retried_total",] == 5


def test_they_say_how_far_the_run_is(server):
    events = Events()
    server.follow(lambda: events, lambda: STATUS)
    loading = ("distinf_limited_by", ("distinf_limited_by", "loading"))
    assert scrape(server.port)[loading] == 1
    with Progress(events, 10, 4, lambda: STATUS) as progress:
        server.follow_tasks(progress.outlook)
        fill(events)
        found = scrape(server.port)
        assert found["distinf_tasks",] == 10
        assert found["distinf_tasks_written_total",] == 1
        assert found["distinf_tasks_to_do",] == 5
        assert found[loading] == 0
        limits = {k: v for k, v in found.items() if k[0] == "distinf_limited_by"}
        assert len(limits) == 6
        assert sum(limits.values()) == 1
        assert ("distinf_expected_end_timestamp_seconds",) not in found
        for i in range(10):
            events.record(Event("write", "a 0", 0, 6.0, 1e9 + i))
        # No pace can make it end in the past.
        found = scrape(server.port)
        assert ("distinf_expected_end_timestamp_seconds",) not in found
        assert sum(v for k, v in found.items() if k[0] == "distinf_limited_by") == 0


def test_a_browser_and_an_old_prometheus_get_text(server):
    server.follow(Events, lambda: STATUS)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = {family.name for family in parse_plain(answer.read().decode())}
    assert {"distinf_workers", "distinf_operations"} <= families


def test_each_family_has_a_unit_and_a_text_where_one_belongs(server):
    events = Events()
    server.follow(lambda: events, lambda: STATUS)
    fill(events)
    families = list(text_string_to_metric_families(text(server.port)))
    assert len(families) == 12
    assert all(family.documentation for family in families)
    assert {family.type for family in families} == {"counter", "gauge", "stateset"}


def test_it_listens_on_loopback_only(server):
    own = psutil.Process().net_connections("tcp")
    addresses = {c.laddr.ip for c in own if c.status == "LISTEN" and c.laddr.port == server.port}
    assert addresses == {"127.0.0.1"}


def test_a_port_in_use_is_refused_and_free_again_at_the_end():
    with closing(MetricsServer(0)) as first, pytest.raises(ConfigError) as caught:
        MetricsServer(first.port)
    assert str(caught.value).startswith(f"runtime.metrics_port={first.port}: ")
    assert "in use" in str(caught.value)
    with pytest.raises(urllib.error.URLError):
        text(first.port)
    MetricsServer(first.port).close()


@pytest.mark.slow
def test_nothing_is_imported_for_it_unless_it_is_wanted():
    code = (
        "import sys; from distinf import session\n"
        "with session(): assert 'prometheus_client' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_application_of_its_own_is_not_loading_while_it_computes(server):
    events = Events()
    server.follow(lambda: events, lambda: STATUS)
    loading = ("distinf_limited_by", ("distinf_limited_by", "loading"))
    assert scrape(server.port)[loading] == 1
    fill(events)
    assert scrape(server.port)[loading] == 0
