"""What each rank did when, as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from distinf.report import Event

# Kinds of events that are drawn, in the order of the legend.
_KINDS = ("read", "forecast", "diagnose", "write")
_LANES = 24
_PIXELS = 1500


@dataclass(frozen=True)
class Timeline:
    """What is drawn; bars that would touch in the picture are joined.

    ``bars`` are by what was done, and then by lane, (rank, whether it wrote): seconds since
    ``start``, and lengths.
    """

    start: float
    end: float
    bars: dict[str, dict[tuple[int, bool], list[tuple[float, float]]]] = field(default_factory=dict)

    @property
    def lanes(self) -> list[tuple[int, bool]]:
        """One lane for what each rank computed, one for what it wrote at the same time."""
        return sorted({lane for lanes in self.bars.values() for lane in lanes})

    @property
    def height(self) -> float:
        """Inches that the picture needs."""
        return 1.2 + 0.25 * min(_LANES, len(self.lanes))

    def draw(self, figure: Any) -> None:
        """Fill a figure or a subfigure of matplotlib."""
        lanes = self.lanes
        shown = lanes[:: -(-len(lanes) // _LANES)]
        axis = figure.subplots()
        for number, (what, by_lane) in enumerate(self.bars.items()):
            label: str | None = what
            for lane, times in by_lane.items():
                if lane in shown:
                    y = shown.index(lane) - 0.4
                    style = {"color": f"C{number}", "lw": 0.2, "ec": "w", "label": label}
                    axis.broken_barh(times, (y, 0.8), **style)
                    label = None
        names = [f"rank {rank}{' writes' if writes else ''}" for rank, writes in shown]
        axis.set_yticks(range(len(shown)), names, fontsize=8)
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_xlim(0, None)
        axis.set_xlabel("seconds since the models were loaded")
        part = f" ({len(shown)} of {len(lanes)} rows)" if len(shown) < len(lanes) else ""
        axis.set_title(f"What each rank did in this run{part}", loc="left", fontsize=10)
        axis.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=min(6, len(self.bars)),
            fontsize=8,
            frameon=False,
        )


def read_timeline(events: Iterable[Event]) -> Timeline | None:
    """Read what the ranks did from the events of a run; None if there is nothing to draw.

    Parameters
    ----------
    events : Iterable[Event]
        Read twice. How the ranks loaded models is left out.
    """
    start, end = float("inf"), float("-inf")
    for event in events:
        if event.kind in _KINDS:
            start, end = min(start, event.start), max(end, event.end)
    if start > end:
        return None
    done: dict[str, dict[tuple[int, bool], list[tuple[float, float]]]] = {}
    pixel = (end - start) / _PIXELS
    for event in events:
        if event.kind not in _KINDS:
            continue
        what = event.task.split(" ")[0] if event.kind == "diagnose" else event.kind
        lane = (event.rank, event.kind == "write")
        bars = done.setdefault(what, {}).setdefault(lane, [])
        begin, stop = event.start - start, event.end - start
        if bars and abs(begin - sum(bars[-1])) < pixel and (stop - begin) < pixel:
            first, length = bars[-1]
            bars[-1] = (first, max(first + length, stop) - first)
        else:
            bars.append((begin, stop - begin))
    order = [kind for kind in _KINDS if kind != "diagnose"]
    calls = sorted(done.keys() - set(order))
    names = [*order[:2], *calls, *order[2:]]
    return Timeline(start, end, {what: done[what] for what in names if what in done})
