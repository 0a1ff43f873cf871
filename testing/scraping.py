"""Read metrics as Prometheus does."""

from __future__ import annotations

import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families

# A sample's name, then its labels with their values.
Samples = dict[tuple[str | tuple[str, str], ...], float]


def text(port: int) -> str:
    """Return what a server on loopback serves, in OpenMetrics' format."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics",
        headers={"Accept": "application/openmetrics-text; version=1.0.0"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        served: str = answer.read().decode()
    return served


def scrape(port: int) -> Samples:
    """Return the samples that a server serves."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text(port))
        for sample in family.samples
    }
