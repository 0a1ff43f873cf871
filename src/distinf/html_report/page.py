"""The report of a run as one HTML file."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distinf.errors import StoreError
from distinf.html_report.curves import draw_arithmetic, draw_series
from distinf.html_report.maps import draw_maps
from distinf.html_report.selection import Shown, choose_variables, read_shown, words
from distinf.html_report.timeline import read_timeline
from distinf.options import Report
from distinf.report import Event, Totals, summarize

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

_LISTED = 20  # tasks that lack or were skipped
_DPI = 110


@dataclass(frozen=True)
class Record:
    """How a run went.

    Attributes
    ----------
    events : Iterable[Event]
        What was done when; it is read several times.
    workers : tuple[int, ...]
        Ranks that ran diagnostics.
    writers : int
        Threads, or ranks, that wrote.
    cores : int | None
        CPU cores that all ranks shared; None: they computed elsewhere, or it is not known.
    engine : str
        ``runtime.engine``.
    together : tuple[int, int]
        Ranks that run the prognostic, and each diagnostic, together.
    """

    events: Iterable[Event]
    workers: tuple[int, ...]
    writers: int = 2
    cores: int | None = None
    engine: str = "tensorpipe"
    together: tuple[int, int] = (1, 1)


def read_record(store: str, events: Iterable[Event]) -> Record:
    """Say how a run went, from its events and the config that its store keeps.

    Parameters
    ----------
    store : str
        Path or URL of the store.
    events : Iterable[Event]
        Events of the run; read several times.

    Raises
    ------
    StoreError
        If there is no store.
    """
    with _opened(store) as dataset:
        config = json.loads(dataset.attrs.get("config", "{}"))
    runtime, output = (config.get(name) or {} for name in ("runtime", "output"))
    diagnostics = (config.get("diagnostic") or {}).values()
    workers = tuple(sorted(Totals.of(events).calls))
    apart = output.get("writer") == "workers" or runtime.get("drivers", 1) != 1
    together = (
        int((config.get("prognostic") or {}).get("ranks") or 1),
        max((int((own or {}).get("ranks") or 1) for own in diagnostics), default=1),
    )
    return Record(
        events,
        workers,
        max(1, len(workers)) if apart else int(output.get("writers", 2)),
        engine=str(runtime.get("engine", "tensorpipe")),
        together=together,
    )


@dataclass(frozen=True)
class Picture:
    """A picture on the page: PNG as a data URL, what it shows, and a caption."""

    source: str
    shows: str
    caption: str


def write_report(store: str, file: str | Path, wanted: Report, record: Record | None) -> None:
    """Write a page about a run; it replaces the file when it is whole.

    Parameters
    ----------
    store : str
        Path or URL of the store.
    file : str | Path
        HTML file.
    wanted : Report
        What to show.
    record : Record | None
        How the run went; None: that is left out.

    Raises
    ------
    ConfigError
        If the store does not have what ``wanted`` names.
    StoreError
        If there is no store, or the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("distinf.html_report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with _opened(store) as dataset:
        context = {
            **_of_store(dataset, store),
            **_of_variables(dataset, wanted),
            **_of_run(record),
        }
    page = environment.get_template("report.html.j2").render(context)
    partial = Path(f"{file}.part")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        raise StoreError(f"the report {file} could not be written: {error}") from error


def _opened(store: str) -> xr.Dataset:
    import xarray as xr

    try:
        opened: xr.Dataset = xr.open_zarr(store, chunks=None)
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(f"parameters.output_path={store}: there is no store to report") from error
    return opened


def _of_store(dataset: xr.Dataset, store: str) -> dict[str, Any]:
    """Return what the page says of a store: what it is, what it lacks, what it comes from."""
    done, lacking = _completeness(dataset)
    attributes = dataset.attrs
    sizes = {str(dim): size for dim, size in dataset.sizes.items()}
    return {
        "name": store.rstrip("/").rpartition("/")[2],
        "store": store,
        "done": done,
        "tasks": done + sum(number for number, _ in lacking.values()),
        "lacking": {name: _some(*tasks) for name, tasks in lacking.items() if tasks[0]},
        "dimensions": sizes,
        "first": words(dataset["time"].values[0]),
        "last": words(dataset["time"].values[-1]),
        "history": str(attributes.get("history", "")).splitlines(),
        "config": _as_yaml(attributes.get("config")),
        "versions": json.loads(attributes.get("versions", "{}")),
        "arrays": [_described(str(name), array) for name, array in dataset.items()],
    }


def _completeness(dataset: xr.Dataset) -> tuple[int, dict[str, tuple[int, list[str]]]]:
    """Return the number of complete tasks; of each diagnostic how many lack, and the first ones."""
    done, lacking = 0, {}
    for name, array in dataset.items():
        diagnostic = str(name).removesuffix("_complete")
        if array.dtype != bool or diagnostic == name:
            continue
        marks = array.values
        done += int(marks.sum())
        first = [
            ", ".join(
                words(dataset[dim].values[i]) for dim, i in zip(array.dims, index, strict=True)
            )
            for index in np.argwhere(~marks)[:_LISTED]
        ]
        lacking[diagnostic] = int(marks.size - marks.sum()), first
    return done, lacking


def _described(name: str, array: xr.DataArray) -> dict[str, str]:
    return {
        "name": name,
        "title": str(array.attrs.get("long_name", "")),
        "units": str(array.attrs.get("units", "")),
        "shape": " × ".join(f"{dim} {size}" for dim, size in array.sizes.items()),
    }


def _as_yaml(config: str | None) -> str:
    import yaml

    return "" if config is None else yaml.safe_dump(json.loads(config), sort_keys=False)


def _some(number: int, first: list[str]) -> list[str]:
    more = number - len(first)
    return [*first, f"and {more} more"] if more > 0 else first


def _of_variables(dataset: xr.Dataset, wanted: Report) -> dict[str, Any]:
    """Draw the chosen variables."""
    from distinf.parameters import parse_lead_times, parse_times

    names = choose_variables(dataset, wanted.variables)
    share = wanted.megabytes * 1e6 / max(1, len(names))
    time = None if wanted.time is None else parse_times(wanted.time, "report.time")[0]
    leads = None
    if wanted.lead_times is not None:
        leads = parse_lead_times(wanted.lead_times, "report.lead_times")
    variables = [read_shown(dataset[name], time, leads, share) for name in names]
    maps: dict[str, list[Picture]] = {}
    for shown in variables:
        if shown.grid is not None:
            maps.setdefault(shown.diagnostic, []).append(_map(shown))
    several = [v for v in variables if len(v.series_steps) > 1]
    number = sum("diagnostic" in array.attrs for array in dataset.values())
    chosen = f"{len(names)} of {number} variables"
    if dataset.sizes["time"] > 1 and dataset.sizes["lead_time"] > 1:
        chosen += f"; forecast from {words(dataset['time'].values[0] if time is None else time)}"
    return {
        "maps": maps,
        "series": _series(several) if several else None,
        "chosen": chosen,
    }


def _map(shown: Shown) -> Picture:
    said = [f"{shown.title} ({shown.units})" if shown.units else shown.title]
    if shown.spread[0] is not None:
        said.append(f"mean and spread of {shown.map_members} of {shown.members} members")
    elif shown.members > 1:
        said.append(f"one of {shown.members} members")
    said.append(f"{len(shown.steps)} of {shown.all_steps} steps")
    if shown.every > 1:
        said.append(f"every {_ordinal(shown.every)} point")
    if shown.grid is not None and shown.grid.kind == "unknown":
        said.append("the store has no coordinates of its points")
    return Picture(_png(draw_maps(shown)), f"Maps of {shown.name}", "; ".join(said))


def _ordinal(number: int) -> str:
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number, 'th') }"


def _series(variables: list[Shown]) -> Picture:
    first = max(variables, key=lambda shown: (shown.members, shown.all_steps))
    said = "Mean over the grid"
    said += ", by the area of its cells" if all(v.weighted for v in variables if v.grid) else ""
    said += f"; {len(first.series_steps)} of {first.all_steps} steps"
    if first.members > 1:
        said += f"; {len(first.series)} of {first.members} members in grey, their mean in blue"
    return Picture(_png(draw_series(variables)), "Area means", said)


def _of_run(record: Record | None) -> dict[str, Any]:
    """Return what the page says of how a run went."""
    found: dict[str, Any] = {"timeline": None, "arithmetic": None, "summary": "", "trouble": []}
    found["recorded"] = record is not None
    if record is None:
        return found
    from matplotlib.figure import Figure

    totals = Totals.of(record.events)
    wall = totals.end - totals.start
    if not wall > 0:
        return found
    found["summary"] = summarize(
        totals,
        wall,
        record.workers,
        record.writers,
        record.cores,
        record.engine,
        record.together,
    )
    timeline = read_timeline(record.events)
    if timeline is not None:
        figure = Figure(figsize=(13, timeline.height), layout="constrained")
        timeline.draw(figure)
        caption = "Where a row is empty, the rank waited, or loaded models."
        found["timeline"] = Picture(_png(figure), "Timeline of the ranks", caption)
    work = totals.work(record.writers)
    if work is not None and not work.at_home and record.workers != (0,):
        found["arithmetic"] = Picture(
            _png(draw_arithmetic(work, max(1, len(record.workers)), wall)),
            "Time against the number of workers",
            "From the measured mean times of steps, calls and writes, where each rank has a GPU or "
            "core of its own.",
        )
    found["trouble"] = list(_trouble(record.events))
    return found


def _trouble(events: Iterable[Event]) -> Iterator[Mapping[str, str]]:
    for event in events:
        if event.kind in ("lost", "skip"):
            what = f"rank {event.rank} was lost" if event.kind == "lost" else "task was skipped"
            yield {"what": what, "why": event.task}


def _png(figure: Figure) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(data, format="png", dpi=_DPI)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
