"""Forecast on the driver, diagnose on the workers, gather into one store."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from distinf.background import in_background
from distinf.diagnostics import Kept
from distinf.errors import TasksSkipped
from distinf.farm import Farm
from distinf.forecast import (
    RestartStates,
    blocks,
    check_initial,
    forecasts,
    is_restartable,
    lead_times,
    perturb,
    step_coords,
    tasks,
)
from distinf.loading import import_first, read_code, read_files
from distinf.options import Output
from distinf.parameters import check_valid_times, parse_ensemble, parse_times
from distinf.report import Progress, summarize
from distinf.session import current_session
from distinf.store import (
    ForecastStore,
    Provenance,
    StoreLayout,
    check_output,
    check_resume,
    to_netcdf,
)
from distinf.versions import versions
from recipes.checks import check_models, check_places
from recipes.farmed import attributes, check_stored, construct, let_write, state_plan
from recipes.models import make, take_restartable
from recipes.place import netcdf_path, output_path

log = logging.getLogger("distinf")
T = TypeVar("T")


def check(cfg: DictConfig) -> None:
    """Refuse what cannot work, before any rank is started or model loaded."""
    check_places(cfg)
    check_output(output_path(cfg), cfg.output.mode)
    if cfg.output.mode == "resume":
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        check_resume(output_path(cfg), plain, read_files(plain))
    check_models(cfg)


def diagnostic(cfg: DictConfig) -> None:
    """Run the recipe on the driver, inside a session.

    Parameters
    ----------
    cfg : DictConfig
        The config, checked.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    session = current_session()
    farm, device = session.farm, session.device
    seed, batch = session.runtime.seed, session.runtime.batch
    output = Output(**plain["output"])
    times, nsteps = parse_times(plain["parameters"]["time"]), plain["parameters"]["nsteps"]
    members = parse_ensemble(plain["parameters"]["ensemble"], plain["perturbation"])
    restartable = take_restartable(plain["prognostic"])
    kept = Kept(output.variables, output.region)

    with ExitStack() as stack:
        # Workers load their models while the driver loads its own.
        def load() -> list[Any]:
            with farm.events.timed("load", "diagnostics", 0):
                return construct(plain["diagnostic"], farm.workers, kept, seed)

        loading = _at_once(load) if 0 in farm.workers else in_background(load, "distinf-load")
        with farm.events.timed("load", "prognostic", 0):
            prognostic = make(plain["prognostic"], "prognostic").to(device)
            data = make(plain["data"], "data")
            check_initial(prognostic, data)
            import_first("earth2studio.data")  # reads it; the workers are still loading
        farmed = [stack.enter_context(infer) for infer in loading.result()]
        perturbation = None
        if members is not None:
            kind = make({**plain["perturbation"], "_partial_": True}, "perturbation")
            perturbation = perturb(kind, seed, prognostic, data)

        first = step_coords(prognostic, times[0], member=None if members is None else 0)
        check_valid_times(times, first["lead_time"][-1], nsteps)
        makes = {infer: infer.output_coords(first) for infer in farmed}
        grids = {name: grid for made in makes.values() for name, grid in made.items()}
        if (own := state_plan(output, first)) is not None:
            grids["prognostic"] = own.select_coords(first)
        check_stored(output, grids)
        store = stack.enter_context(
            ForecastStore(
                output_path(cfg),
                StoreLayout(
                    times,
                    lead_times(prognostic, nsteps)[:: output.every],
                    grids,
                    attributes(
                        farmed, [str(v) for grid in grids.values() for v in grid["variable"]]
                    ),
                    None if members is None else np.arange(members),
                ),
                output,
                Provenance(plain, {**versions(), **read_code(plain)}, read_files(plain)),
                events=farm.events,
                pending=2 * (len(farm.workers) + output.writers) * len(grids),
                skip_errors=session.runtime.on_error == "skip",
            )
        )
        if output.writer == "workers" and 0 not in farm.workers:
            let_write(store, farmed)
        done, total = store.marks.counts
        log.info(
            "%d rank(s) by %s, carrier %s%s, %d of %d tasks to do",
            session.place.world_size,
            session.place.launcher,
            farm.transport.carrier,
            farm.transport.reason and f": {farm.transport.reason}",
            total - done,
            total,
        )
        todo = [
            dataclasses.replace(block, nsteps=lacks[1] * output.every)
            for block in blocks(times, members, nsteps, batch)
            if (lacks := store.marks.incomplete(block.times, block.members)) is not None
        ]
        restart = None
        if output.restart_every is not None and is_restartable(prognostic, restartable):
            restart = RestartStates(
                store.destination, output.restart_every, store.marks, output.every
            )
        farm.events.save(Path(HydraConfig.get().runtime.output_dir) / "events.jsonl")
        with Progress(farm.events, total, done, farm.busy):
            states = forecasts(
                prognostic, data, todo, device, farm.events, perturbation, seed, restart
            )
            for x, coords in itertools.chain.from_iterable(itertools.starmap(tasks, states)):
                lacking = store.marks.lacking(coords)
                for infer, made in makes.items():
                    if names := [name for name in made if name in lacking]:
                        future = infer.submit(x, coords)
                        for name in names:
                            store.write(name, future)
                if own is not None and "prognostic" in lacking:
                    store.write("prognostic", session.to_host(own(x, coords)))
            store.close()

    report(farm, output_path(cfg), output, netcdf_path(cfg))
    if store.skipped:
        raise TasksSkipped(store.skipped)


def report(farm: Farm, path: str, output: Output, netcdf: str | None) -> None:
    """Say what the run did, and leave a NetCDF file if one is wanted."""
    farm.events.flush()
    totals = farm.events.totals
    if (wall := totals.end - totals.start) > 0:
        workers = farm.transport.workers
        writers = output.writers if output.writer == "driver" else len(workers)
        print(summarize(farm.events, wall, workers, writers))
    print(f"Results: {path}")
    if netcdf is not None:
        to_netcdf(path, netcdf, output.mode)
        print(f"NetCDF: {netcdf}")


def _at_once(work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(work())
    return future
