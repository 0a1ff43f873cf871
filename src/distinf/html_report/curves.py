"""Curves of a report: area means over the steps, and what more workers would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from distinf.html_report.selection import Shown
from distinf.report import Work, ideal, keeping_up, serial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4


def draw_series(variables: Sequence[Shown]) -> Figure:
    """Draw the area mean of each variable: the members, and their mean."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(variables))
    rows = -(-len(variables) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(variables) :]:
        axis.remove()
    for axis, shown in zip(axes, variables, strict=False):
        x = shown.series_steps
        leads = x.dtype.kind == "m"
        if leads:
            x = x / np.timedelta64(1, "h")
        style = "o-" if len(x) < 30 else "-"
        for member in shown.series:
            several = len(shown.series) > 1
            axis.plot(x, member, style, ms=2, lw=0.7, color="0.7" if several else "C0")
        if len(shown.series) > 1:
            known = np.ma.masked_invalid(shown.series)
            axis.plot(x, known.mean(axis=0).filled(np.nan), style, ms=2, color="C0")
        axis.set_title(shown.name, loc="left", fontsize=9)
        axis.set_ylabel(shown.units, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.yaxis.offsetText.set_fontsize(7)
        axis.grid(alpha=0.3)
        if leads:
            axis.set_xlabel("lead time (h)", fontsize=8)
        else:
            locator = AutoDateLocator(maxticks=5)
            axis.xaxis.set_major_locator(locator)
            axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    return figure


def draw_arithmetic(work: Work, workers: int, wall: float) -> Figure:
    """Draw the shortest possible time of a run against the number of workers, and the measured."""
    from matplotlib.figure import Figure

    enough = keeping_up(work)
    most = max(4, 2 * workers, min(2 * enough, 100 * workers))
    numbers = np.unique(np.geomspace(1, most, 200).round().astype(int))
    figure = Figure(figsize=(6.6, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.plot(numbers, [ideal(work, n) for n in numbers], label="shortest possible")
    axis.axhline(ideal(work, math.inf), color="0.6", lw=0.8, ls=":", label="with any number")
    axis.axhline(serial(work), color="C3", lw=0.8, ls="--", label="one after the other")
    axis.plot([workers], [wall], "o", color="C1", label="this run")
    if enough <= most:
        axis.axvline(enough, color="0.8", lw=0.8)
        axis.annotate(
            f"{enough}: keep up",
            (enough, 0),
            xytext=(3, 3),
            fontsize=8,
            textcoords="offset points",
            color="0.4",
        )
    if most > 40:
        axis.set_xscale("log")
    axis.set_ylim(0, 1.1 * max(serial(work), wall, ideal(work, 1)))
    axis.set_xlabel("workers")
    axis.set_ylabel("seconds")
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.3)
    return figure
