"""Maps of a variable on its own grid, one column for each step, with coastlines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distinf.html_report.coastline import coastlines
from distinf.html_report.grid import Grid, on_sphere
from distinf.html_report.selection import Shown, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 13.0  # inches
_TURNS = (-360, 0, 360)  # longitudes of a grid may lie in any of these
_FAR = 0.2  # cosine of the angle from the centre beyond which a grid is drawn as points


def draw_maps(shown: Shown) -> Figure:
    """Draw the field or the mean of the members, and below it their spread."""
    from matplotlib.figure import Figure

    assert shown.grid is not None
    panel = _panel(shown.grid)
    rows: list[tuple[str, Sequence[Any], dict[str, Any]]] = [("", shown.mean, _colours(shown.mean))]
    if shown.spread[0] is not None:
        top = _quantiles(shown.spread)[1]
        rows[0] = ("mean", *rows[0][1:])
        rows.append(("spread", shown.spread, {"cmap": "magma_r", "vmin": 0.0, "vmax": top or 1.0}))
    columns = len(shown.steps)
    width = _WIDTH if columns > 2 else 4.5 * columns
    height = len(rows) * (0.45 + panel.height * (width - 0.9) / columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for own, (name, fields, colours) in zip(axes, rows, strict=True):
        for axis, field, step in zip(own, fields, shown.steps, strict=True):
            mappable = panel.draw(axis, field, colours)
            missing = "" if np.isfinite(field).any() else " (not written)"
            axis.set_title(f"{name} {words(step)}{missing}".strip(), loc="left", fontsize=9)
            axis.tick_params(labelsize=7)
        bar = figure.colorbar(mappable, ax=list(own), shrink=0.85, pad=0.01, extend="both")
        bar.ax.tick_params(labelsize=7)
        bar.ax.yaxis.offsetText.set_fontsize(7)
        scale: Any = bar.formatter
        scale.set_powerlimits((-2, 4))
        bar.set_label(shown.units, fontsize=8)
    return figure


def _quantiles(fields: Sequence[Any]) -> tuple[float, float]:
    values = np.concatenate([field[np.isfinite(field)] for field in fields])
    if not values.size:
        return 0.0, 0.0
    low, high = np.quantile(values, (0.002, 0.998))
    return float(low), float(high)


def _colours(fields: Sequence[Any]) -> dict[str, Any]:
    """Choose colours: from blue to red around zero where a field has both signs."""
    low, high = _quantiles(fields)
    size = max(abs(low), abs(high)) or 1.0
    if low < -0.05 * size and high > 0.05 * size:
        return {"cmap": "RdBu_r", "vmin": -size, "vmax": size}
    return {"cmap": "viridis", "vmin": low, "vmax": high if high > low else low + 1.0}


class _Panel:
    """How one map of a grid is drawn; ``height`` is that of its panel for a width of 1."""

    def __init__(self, height: float, draw: Callable[[Axes, Any, dict[str, Any]], Any]) -> None:
        self.height = min(2.0, max(0.2, height))
        self.draw = draw


def _panel(grid: Grid) -> _Panel:
    if grid.kind == "regular":
        return _regular(grid)
    if grid.kind == "unknown":
        return _Panel(len(grid.lat) / len(grid.lon), _draw_indices)
    points = on_sphere(grid.lat, grid.lon)
    centre = points.reshape(-1, 3).mean(axis=0)
    centre /= np.linalg.norm(centre) or 1.0
    if grid.kind == "curvilinear" and float((points @ centre).min()) > _FAR:
        return _projected(grid, centre)
    return _scattered(grid)


def _regular(grid: Grid) -> _Panel:
    from matplotlib.ticker import MultipleLocator

    lat, lon = grid.lat, grid.lon
    south, north, west, east = lat.min(), lat.max(), lon.min(), lon.max()
    # A degree of longitude is shorter in the north; on a map of the world nobody minds.
    stretch = 1.0
    if north - south < 90:
        stretch = 1 / max(0.2, np.cos(np.radians((north + south) / 2)))
    even = all(len(axis) > 1 and np.ptp(np.diff(axis)) < 1e-3 for axis in (lat, lon))

    def draw(axis: Axes, field: Any, colours: dict[str, Any]) -> Any:
        if even:
            dy, dx = (lat[1] - lat[0]) / 2, (lon[1] - lon[0]) / 2
            extent = (lon[0] - dx, lon[-1] + dx, lat[-1] + dy, lat[0] - dy)
            drawn: Any = axis.imshow(field, extent=extent, origin="upper", **colours)
        else:
            drawn = axis.pcolormesh(lon, lat, field, shading="nearest", **colours)
        limits = axis.get_xlim(), axis.get_ylim()
        _coast_by_degrees(axis)
        axis.set(xlim=limits[0], ylim=sorted(limits[1]))
        if np.ptp(lon) > 180:
            axis.xaxis.set_major_locator(MultipleLocator(90))
            axis.yaxis.set_major_locator(MultipleLocator(45))
        axis.xaxis.set_major_formatter(lambda v, _: f"{(v + 180) % 360 - 180:g}°")
        axis.yaxis.set_major_formatter(lambda v, _: f"{v:g}°")
        axis.set_aspect(stretch)
        return drawn

    return _Panel(stretch * (north - south) / max(east - west, 1e-9), draw)


def _projected(grid: Grid, centre: np.ndarray) -> _Panel:
    """Draw a curvilinear grid in a stereographic projection around its centre, north up."""
    x, y = _stereographic(on_sphere(grid.lat, grid.lon), centre)
    lines = []
    for line in coastlines():
        points = on_sphere(line[:, 1], line[:, 0])
        near = points @ centre > _FAR / 2
        # A break where the line is too far away.
        lines.append(np.where(near, _stereographic(points, centre), np.nan))
    middle = float(np.degrees(np.arctan2(centre[1], centre[0])))
    lon = middle + (grid.lon - middle + 180) % 360 - 180

    def draw(axis: Axes, field: Any, colours: dict[str, Any]) -> Any:
        drawn = axis.pcolormesh(x, y, field, shading="nearest", **colours)
        limits = axis.get_xlim(), axis.get_ylim()
        for own_x, own_y in lines:
            axis.plot(own_x, own_y, color="0.15", lw=0.6)
        for degrees in (grid.lat, lon):
            if np.ptp(degrees) > 0 and min(degrees.shape) > 1:
                levels = _nice(float(degrees.min()), float(degrees.max()))
                graticule = axis.contour(x, y, degrees, levels, colors="0.4", linewidths=0.4)
                axis.clabel(graticule, fmt=lambda v: f"{(v + 180) % 360 - 180:g}°", fontsize=6)
        axis.set(xlim=limits[0], ylim=limits[1], xticks=[], yticks=[])
        axis.set_aspect("equal")
        return drawn

    return _Panel(float(np.ptp(y) / max(np.ptp(x), 1e-9)), draw)


def _stereographic(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Project points [..., 3] of the sphere: [2, ...], to the east and to the north."""
    east = np.array([-centre[1], centre[0], 0.0])
    if np.linalg.norm(east) < 1e-6:  # at a pole
        east = np.array([0.0, 1.0, 0.0])
    east /= np.linalg.norm(east)
    north = np.cross(centre, east)
    scale = 2 / np.maximum(1e-3, 1 + points @ centre)
    return np.stack([scale * (points @ east), scale * (points @ north)])


def _nice(low: float, high: float) -> np.ndarray:
    """Return some round numbers between two."""
    step = next((s for s in (1, 2, 5, 10, 20) if (high - low) / s <= 5), 30)
    return np.arange(np.ceil(low / step) * step, high, step)


def _scattered(grid: Grid) -> _Panel:
    lon = (grid.lon + 180) % 360 - 180

    def draw(axis: Axes, field: Any, colours: dict[str, Any]) -> Any:
        size = min(20.0, 60000 / max(1, field.size))
        drawn = axis.scatter(
            lon.ravel(), grid.lat.ravel(), c=np.ravel(field), s=size, lw=0, **colours
        )
        limits = axis.get_xlim(), axis.get_ylim()
        _coast_by_degrees(axis)
        axis.set(xlim=limits[0], ylim=limits[1])
        axis.set_aspect("equal")
        return drawn

    return _Panel(float(np.ptp(grid.lat) / max(np.ptp(lon), 1e-9)), draw)


def _draw_indices(axis: Axes, field: Any, colours: dict[str, Any]) -> Any:
    return axis.imshow(np.atleast_2d(field), aspect="auto", origin="lower", **colours)


def _coast_by_degrees(axis: Axes) -> None:
    from matplotlib.collections import LineCollection

    lines = [line + np.array([turn, 0]) for turn in _TURNS for line in coastlines()]
    axis.add_collection(LineCollection(lines, colors="0.15", linewidths=0.5), autolim=False)
