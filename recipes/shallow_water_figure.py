"""The picture of a run: maps of one variable at a few lead times."""

from __future__ import annotations

import os

import numpy as np
import xarray as xr

from distinf.errors import ConfigError

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


def draw(store_path: str, picture: str, variable: str = "vo850") -> None:
    """Draw maps of a variable from a forecast store.

    Parameters
    ----------
    store_path : str
        The store.
    picture : str
        PNG file to write; only one that was drawn here is replaced.
    variable : str, optional
        Its dims are (ensemble,) time, lead_time, lat, lon; the first member and time are drawn.
        Another one is drawn if the store does not have it.

    Raises
    ------
    ConfigError
        If another file is there.
    """
    check_picture(picture)  # it may have come while the run went on
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, MultipleLocator, ScalarFormatter

    with xr.open_zarr(store_path) as store:
        if variable not in store:
            variable = next(str(v) for v, a in store.items() if a.dims[-2:] == ("lat", "lon"))
        field = store[variable].isel(time=0, ensemble=0, missing_dims="ignore")
        leads = _leads(field.lead_time.values)
        shown = field.sel(lead_time=leads).transpose("lead_time", "lat", "lon").load()
        # The jet of the default is in one hemisphere: show where the action is.
        south, north = _band(shown)
        shown = shown.sel(lat=shown.lat[(shown.lat >= south) & (shown.lat <= north)])
        size = float(np.nanquantile(np.abs(shown.values), 0.999)) or 1.0

        figure, axes = plt.subplots(
            len(leads),
            1,
            figsize=(9.0, 1.6 + len(leads) * (0.35 + 8.4 * (north - south) / 360)),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, state in zip(axes[:, 0], shown, strict=True):
            mesh = axis.pcolormesh(
                shown.lon, shown.lat, state, cmap="RdBu_r", vmin=-size, vmax=size, shading="nearest"
            )
            hours = state.lead_time.values / _HOUR
            missing = "" if np.isfinite(state.values).any() else " (not written)"
            axis.set_title(f"day {hours / 24:g}{missing}", loc="left", fontsize=10)
            axis.set_xlim(*shown.lon.values[[0, -1]])
            axis.xaxis.set_major_locator(MultipleLocator(60))
            axis.yaxis.set_major_locator(MultipleLocator(30))
            axis.xaxis.set_major_formatter(FuncFormatter(_longitude))
            axis.yaxis.set_major_formatter(FuncFormatter(_latitude))
        name = field.attrs.get("long_name", variable)
        bar = figure.colorbar(
            mesh,
            ax=list(axes[:, 0]),
            location="bottom",
            shrink=0.6,
            aspect=40,
            extend="both",
            format=ScalarFormatter(useMathText=True),
        )
        bar.formatter.set_powerlimits((-2, 3))
        bar.set_label(f"{name} ({field.attrs.get('units', '')})")
        start = np.datetime_as_string(field.time.values, unit="h")
        figure.suptitle(f"{name[:1].upper()}{name[1:]}, forecast from {start}")
        figure.savefig(picture, dpi=130, metadata=_SOURCE)
        plt.close(figure)


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
