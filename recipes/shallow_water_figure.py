"""The picture of a run: maps of variables at a few lead times, and a timeline of the ranks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distinf import ConfigError, read_timeline

if TYPE_CHECKING:
    import xarray as xr

_HOUR = np.timedelta64(1, "h")
_MAPS = 4
# By which a picture is known as one of these.
_SOURCE = {"Source": "distinf"}


def check_picture(picture: str) -> None:
    """Refuse a file that exists and was not drawn here.

    Parameters
    ----------
    picture : str
        PNG file that will be written.

    Raises
    ------
    ConfigError
        Names the file.
    """
    if not os.path.lexists(picture):
        return
    from PIL import Image

    try:
        with Image.open(picture) as there:
            drawn = _SOURCE.items() <= there.info.items()
    except (OSError, ValueError):
        drawn = False
    if not drawn:
        raise ConfigError(
            f"{picture}, where the picture of the forecast goes, exists and distinf did not draw "
            "it: move it away, or choose another parameters.output_path"
        )


def draw(
    store_path: str,
    picture: str,
    variables: Sequence[str] = ("vo850",),
    events: Iterable[Any] = (),
) -> None:
    """Draw maps of variables from a forecast store, and when each rank did what.

    Parameters
    ----------
    store_path : str
        The store.
    picture : str
        PNG file to write; only one that was drawn here is replaced.
    variables : Sequence[str], optional
        Their dims are (ensemble,) time, lead_time, lat, lon; the first member and time are drawn,
        one column for each. Those that the store does not have are left out; without any another
        variable is drawn.
    events : Iterable[Event], optional
        What the ranks did; read twice.

    Raises
    ------
    ConfigError
        If another file is there.
    """
    check_picture(picture)  # it may have come while the run went on
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import xarray as xr

    timeline = read_timeline(events)
    with xr.open_zarr(store_path, chunks=None) as store:
        names = [name for name in variables if name in store]
        names = names or [str(v) for v, a in store.items() if a.dims[-2:] == ("lat", "lon")][:1]
        fields = [_chosen(store[name]) for name in names]
        # The jet of the default is in one hemisphere: show where the action is.
        south, north = _band(fields[0])
        width = 9.0 if len(fields) == 1 else 6.0 * len(fields)
        rows = fields[0].lead_time.size
        maps = 1.6 + rows * (0.35 + (width / len(fields) - 0.6) * (north - south) / 360)
        times = timeline.height if timeline is not None else 0.0
        figure = plt.figure(figsize=(width, maps + times), layout="constrained")
        upper = figure
        if timeline is not None:
            upper, lower = figure.subfigures(2, 1, height_ratios=(maps, times))
            timeline.draw(lower)
        start = np.datetime_as_string(fields[0].time.values, unit="h")
        upper.suptitle(f"Forecast from {start}")
        axes = upper.subplots(rows, len(fields), sharex=True, sharey=True, squeeze=False)
        for column, field in zip(axes.T, fields, strict=True):
            _draw_maps(column, field.sel(lat=(field.lat >= south) & (field.lat <= north)))
        figure.savefig(picture, dpi=130, metadata=_SOURCE)
        plt.close(figure)


def _chosen(field: xr.DataArray) -> xr.DataArray:
    """Load a few lead times of the first member and time: (lead_time, lat, lon)."""
    first = field.isel(time=0, ensemble=0, missing_dims="ignore")
    shown = first.sel(lead_time=_leads(first.lead_time.values))
    return shown.transpose("lead_time", "lat", "lon").load()


def _draw_maps(axes: np.ndarray, field: xr.DataArray) -> None:
    """Draw one map below the other, with one colour bar."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator, ScalarFormatter

    # Where nothing was written there is no size.
    finite = np.abs(field.values[np.isfinite(field.values)])
    size = float(np.quantile(finite, 0.999) if finite.size else 0.0) or 1.0
    for axis, state in zip(axes, field, strict=True):
        mesh = axis.pcolormesh(
            field.lon, field.lat, state, cmap="RdBu_r", vmin=-size, vmax=size, shading="nearest"
        )
        hours = state.lead_time.values / _HOUR
        missing = "" if np.isfinite(state.values).any() else " (not written)"
        axis.set_title(f"day {hours / 24:g}{missing}", loc="left", fontsize=10)
        axis.set_xlim(*field.lon.values[[0, -1]])
        axis.xaxis.set_major_locator(MultipleLocator(60))
        axis.yaxis.set_major_locator(MultipleLocator(30))
        axis.xaxis.set_major_formatter(FuncFormatter(_longitude))
        axis.yaxis.set_major_formatter(FuncFormatter(_latitude))
    bar = axes[0].figure.colorbar(
        mesh,
        ax=list(axes),
        location="bottom",
        shrink=0.8,
        aspect=40,
        extend="both",
        format=ScalarFormatter(useMathText=True),
    )
    bar.formatter.set_powerlimits((-2, 3))
    name = field.attrs.get("long_name", field.name)
    bar.set_label(f"{name} ({field.attrs.get('units', '')})")


def _leads(leads: np.ndarray) -> np.ndarray:
    """Choose a few lead times, the last among them: the later half is where things happen."""
    wanted = [leads[-1] * share for share in (0.0, 0.5, 0.75, 1.0)][-_MAPS:]
    nearest = [int(np.abs(leads - lead).argmin()) for lead in wanted]
    return np.asarray(leads[sorted(set(nearest))])


def _band(field: xr.DataArray) -> tuple[float, float]:
    """Hemisphere that holds nearly all of the signal, or both."""
    power = np.nansum(np.square(field.values), axis=(0, 2)) * np.cos(np.radians(field.lat.values))
    total = power.sum()
    if power[field.lat.values >= 0].sum() > 0.95 * total:
        return 0.0, 90.0
    if power[field.lat.values <= 0].sum() > 0.95 * total:
        return -90.0, 0.0
    return -90.0, 90.0


def _longitude(degrees: float, _: int) -> str:
    east = (degrees + 180) % 360 - 180
    if abs(east) in (0, 180):
        return f"{abs(east):.0f}°"
    return f"{abs(east):.0f}°{'E' if east > 0 else 'W'}"


def _latitude(degrees: float, _: int) -> str:
    return f"{abs(degrees):.0f}°{'N' if degrees > 0 else 'S' if degrees < 0 else ''}"
