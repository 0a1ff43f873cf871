"""Metrics of a run for Prometheus, over HTTP on loopback.

They are read from the totals of the events and from the farm's status when they are asked for, so
they take no time of a task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.registry import Collector

from distinf.errors import ConfigError
from distinf.report.events import Events, Totals
from distinf.report.limits import LIMITS
from distinf.report.progress import Outlook
from distinf.report.status import Status

log = logging.getLogger("distinf")

_LOOPBACK = "127.0.0.1"
_KINDS = ("read", "forecast", "diagnose", "write")


class MetricsServer(Collector):
    """Serves the metrics of a run on loopback until :meth:`close`.

    ``port`` is ``runtime.metrics_port``; with 0 a free one is taken. The log says which. Until
    :meth:`follow` and :meth:`follow_tasks` there is less to tell. Raises `ConfigError` if the port
    cannot be used.
    """

    def __init__(self, port: int) -> None:
        self._events: Callable[[], Events] | None = None
        self._status: Callable[[], Status] | None = None
        self._outlook: Callable[[], Outlook] | None = None
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, _LOOPBACK, registry)
        except OSError as error:
            raise ConfigError(
                f"runtime.metrics_port={port}: {error.strerror}; choose another port, 0 for any "
                "free one, or null"
            ) from None
        self.port: int = self._server.server_port
        log.info("metrics: http://%s:%d/metrics", _LOOPBACK, self.port)

    def follow(self, events: Callable[[], Events], status: Callable[[], Status]) -> None:
        """Serve what is in these events, and what the workers do."""
        self._events, self._status = events, status

    def follow_tasks(self, outlook: Callable[[], Outlook]) -> None:
        """Serve how far the tasks of the run are, too."""
        self._outlook = outlook

    def close(self) -> None:
        """Stop to listen."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _calls(self) -> int:
        return self._events().totals.counts["diagnose"] if self._events is not None else 0

    def describe(self) -> Iterator[Metric]:
        """Return nothing: it is asked for when this is registered, before there are events."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as they are now."""
        if self._events is not None:
            yield from _work(self._events().totals)
        if self._status is not None:
            yield from _workers(self._status())
        outlook = None if self._outlook is None else self._outlook()
        if outlook is not None:
            yield from _tasks(outlook)
            limit = outlook.limit
        else:
            limit = None if self._calls() else "loading"
        yield StateSetMetricFamily(
            "distinf_limited_by",
            "What limits the run at this moment",
            {name: name == limit for name in LIMITS},
        )


def _labelled(kind: Any, name: str, text: str, label: str, values: Mapping[Any, float]) -> Metric:
    family: Metric = kind(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([str(key)], value)  # type: ignore[attr-defined]
    return family


def _work(totals: Totals) -> Iterator[Metric]:
    counts, seconds, nbytes = dict(totals.counts), dict(totals.seconds), dict(totals.nbytes)
    yield _labelled(
        CounterMetricFamily,
        "distinf_operations",
        "Steps that were read or forecast, diagnostic calls, and results that were written",
        "kind",
        {kind: counts.get(kind, 0) for kind in _KINDS},
    )
    yield _labelled(
        CounterMetricFamily,
        "distinf_operation_seconds",
        "Time that these operations took",
        "kind",
        {kind: seconds.get(kind, 0.0) for kind in _KINDS},
    )
    moved = {
        "to_workers": nbytes.get("diagnose", 0),
        "from_workers": totals.nbytes_out,
        "written": nbytes.get("write", 0),
    }
    text = "Tensors that were sent, and results that were written, uncompressed"
    yield _labelled(CounterMetricFamily, "distinf_moved_bytes", text, "direction", moved)
    calls, busy = dict(totals.calls), dict(totals.busy)
    yield _labelled(CounterMetricFamily, "distinf_calls", "Diagnostic calls", "rank", calls)
    text = "Time that a rank took for diagnostic calls"
    yield _labelled(CounterMetricFamily, "distinf_busy_seconds", text, "rank", busy)


def _workers(status: Status) -> Iterator[Metric]:
    yield GaugeMetricFamily("distinf_workers", "Workers that are there", status.workers)
    yield GaugeMetricFamily("distinf_workers_busy", "Workers that have a task", status.busy)
    text = "Workers that are late with a sign of life"
    yield GaugeMetricFamily("distinf_workers_silent", text, len(status.silent))
    yield CounterMetricFamily("distinf_workers_lost", "Workers that were lost", status.losses)
    text = "Tasks that wait, on a worker or for one"
    yield GaugeMetricFamily("distinf_tasks_queued", text, status.queued)
    text = "Attempts that repeated one on a lost worker"
    yield CounterMetricFamily("distinf_tasks_retried", text, status.retried)


def _tasks(outlook: Outlook) -> Iterator[Metric]:
    yield GaugeMetricFamily("distinf_tasks", "Tasks of the run", outlook.total)
    text = "Tasks that are still to be written"
    yield GaugeMetricFamily("distinf_tasks_to_do", text, outlook.to_do)
    text = "Tasks that failed and are left out"
    yield CounterMetricFamily("distinf_tasks_skipped", text, outlook.skipped)
    text = "Tasks that this run has written"
    written = outlook.written - outlook.before
    yield CounterMetricFamily("distinf_tasks_written", text, written)
    if outlook.end is not None:
        text = "When the run will end, by its recent pace, since 1970"
        yield GaugeMetricFamily("distinf_expected_end_timestamp_seconds", text, outlook.end)
