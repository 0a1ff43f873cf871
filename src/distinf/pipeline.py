"""The parts of a recipe: load the models, forecast what the store lacks, store, report.

Each takes a `Run` and works inside a session, on the driver.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from distinf.background import in_background
from distinf.coords import State
from distinf.diagnostics import assign
from distinf.errors import TaskError, TasksSkipped, as_config_error
from distinf.forecast import (
    Block,
    RestartStates,
    check_initial,
    is_restartable,
    lead_times,
    perturb,
    states,
)
from distinf.inference import DistributedInference
from distinf.loading import (
    ArchiveSteps,
    import_first,
    load_section,
    read_code,
    read_files,
)
from distinf.planning import StoredOutput, archive_steps, chain_factory, verified
from distinf.report import Progress, summarize
from distinf.run import ForecastRun, Run, as_archive, as_forecast
from distinf.session import current_session
from distinf.statistics import score_attributes
from distinf.store import (
    ForecastStore,
    Provenance,
    StoreLayout,
    to_netcdf,
    vocabulary,
)
from distinf.versions import versions

log = logging.getLogger("distinf")


@dataclass(frozen=True)
class Forecast:
    """The loaded forecast of a run; made by :func:`load_forecast`.

    Attributes
    ----------
    run : Run
        Its settings.
    prognostic : PrognosticModel
        On the driver's device.
    data : DataSource | ForecastSource
        Where initial conditions are read.
    perturbation : Callable | None
        Perturbs the initial condition of one member; None without an ensemble.
    """

    run: ForecastRun
    prognostic: Any
    data: Any
    perturbation: Any = None

    @property
    def times(self) -> np.ndarray:
        """Initial times, datetime64[ns]."""
        return self.run.times

    @property
    def lead_times(self) -> np.ndarray:
        """Lead times that are stored, timedelta64[ns]."""
        return lead_times(self.prognostic, self.run.nsteps)[:: self.run.output.every]

    @property
    def members(self) -> np.ndarray | None:
        """Members of the ensemble, int64; None without one."""
        return None if self.run.members is None else np.arange(self.run.members)

    def states(self, store: ForecastStore) -> Iterator[State]:
        """Forecast what a store lacks, from the newest saved state where there is one.

        Parameters
        ----------
        store : ForecastStore
            The store of this run; states are saved in it as ``output.restart_every`` says.

        Yields
        ------
        tuple[torch.Tensor, Coords]
            States [(ensemble=1,) time=1, lead_time=1, variable, ...] on the driver's device, and
            their coords. The model may reuse a state's memory for the next one.
        """
        run, session = self.run, current_session()
        restart = None
        if run.output.restart_every is not None and is_restartable(
            self.prognostic, run.restartable
        ):
            restart = RestartStates(
                store.destination, run.output.restart_every, store.marks, run.output.every
            )
        return states(
            self.prognostic,
            self.data,
            Block(run.times, self.members, run.nsteps),
            store.marks,
            run.output.every,
            run.runtime.batch,
            device=session.device,
            events=session.farm.events,
            perturbation=self.perturbation,
            seed=run.runtime.seed,
            restart=restart,
        )


def load_forecast(run: Run) -> Forecast:
    """Load the prognostic, the data source and the perturbation.

    Parameters
    ----------
    run : Run
        The run.

    Raises
    ------
    ConfigError
        If a setting is wrong, or the data lies on a grid from which the prognostic cannot start.
    """
    run, session = as_forecast(run), current_session()
    with session.farm.events.timed("load", "prognostic", 0):
        prognostic = load_section(run.prognostic, "prognostic").to(session.device)
        data = load_section(run.data, "data")
        check_initial(prognostic, data)
        import_first("earth2studio.data")  # reads it; the workers are still loading
    perturbation = None
    if run.members is not None:
        kind = load_section({**run.perturbation, "_partial_": True}, "perturbation")
        perturbation = perturb(kind, run.runtime.seed, prognostic, data)
    return Forecast(run, prognostic, data, perturbation)


def open_archive(run: Run) -> ArchiveSteps:
    """Find out which steps the data of a run has.

    Parameters
    ----------
    run : Run
        The run.

    Raises
    ------
    ConfigError
        If a setting is wrong, or the data does not have what the run takes of it.
    """
    return archive_steps(as_archive(run), load_section(run.data, "data"))


@contextmanager
def load_diagnostics(run: Run) -> Iterator[Future[list[DistributedInference]]]:
    """Load all diagnostics on their workers, while the block goes on with something else.

    Parameters
    ----------
    run : Run
        The run.

    Yields
    ------
    Future[list[DistributedInference]]
        One for each chain; its results are mappings from diagnostics to a tensor and its coords.
        They are forgotten on the workers at the end of the block.

    Raises
    ------
    ConfigError
        If there are too few workers, or a setting is wrong; by the future.
    TaskError
        If a model cannot be loaded; by the future.
    """
    farm = current_session().farm

    def load() -> list[DistributedInference]:
        with farm.events.timed("load", "diagnostics", 0):
            return _load_chains(run, farm.places)

    if 0 in farm.workers:  # this process alone: nothing can run beside
        loading: Future[list[DistributedInference]] = Future()
        loading.set_result(load())
    else:
        loading = in_background(load, "distinf-load")
    try:
        yield loading
    finally:
        if loading.done() and loading.exception() is None:
            for loaded in reversed(loading.result()):
                loaded.shutdown()


def _load_chains(run: Run, workers: Sequence[int]) -> list[DistributedInference]:
    linked = {names[0]: names for names in run.chains}
    ranks = assign(linked, run.placements, workers)
    loaded = []
    for head, names in linked.items():
        factories = {
            name: partial(load_section, run.diagnostics[name], f"diagnostic.{name}")
            for name in names
        }
        build: Any = chain_factory(run, factories, partial(load_section, run.data, "data"))
        build.__name__ = "+".join(names)  # what errors call it
        try:
            loaded.append(DistributedInference(build, remote_ranks=ranks[head]))
        except TaskError as error:
            raise as_config_error(error) from None
    return loaded


@contextmanager
def open_store(
    run: Run, source: Forecast | ArchiveSteps, outputs: Sequence[StoredOutput]
) -> Iterator[ForecastStore]:
    """Open the store of a run, with a progress bar; it is complete and closed after the block.

    Parameters
    ----------
    run : Run
        The run.
    source : Forecast | ArchiveSteps
        Its forecast, or the steps of its archive.
    outputs : Sequence[StoredOutput]
        As `plan_outputs` returns them.

    Yields
    ------
    ForecastStore
        The store.

    Raises
    ------
    StoreError
        If the store may not be touched, does not match or cannot be written.
    Exception
        The first error of a task.
    """
    session = current_session()
    farm, output = session.farm, run.output
    grids = {name: grid for each in outputs for name, grid in each.grids.items()}
    attributes = {str(v): vocabulary(str(v)) for grid in grids.values() for v in grid["variable"]}
    scored = {str(v) for name in run.scores if name in grids for v in grids[name]["variable"]}
    chains = [each.diagnostics for each in outputs if each.diagnostics is not None]
    for infer in chains:
        attributes.update(infer.variable_attributes())
    for variable, own in list(attributes.items()):
        attributes.update({k: v for k, v in score_attributes(variable, own).items() if k in scored})
    with (
        ForecastStore(
            run.output_path,
            StoreLayout(
                source.times,
                source.lead_times,
                grids,
                attributes,
                source.members,
            ),
            output,
            Provenance(
                run.settings, {**versions(), **read_code(run.settings)}, read_files(run.settings)
            ),
            events=farm.events,
            pending=2 * (len(farm.places) + output.writers) * len(grids),
            skip_errors=run.runtime.on_error == "skip",
            verified=verified(run, source.members, grids),
        ) as store,
        ExitStack() as block,
    ):
        if output.writer == "workers" and 0 not in farm.workers:
            block.enter_context(let_workers_write(store, chains))
            if not farm.transport.may_join:
                block.close()
        done, total = store.marks.counts
        log.info(
            "%d rank(s) by %s, carrier %s%s, %d of %d tasks to do",
            session.info.world_size,
            session.info.launcher,
            farm.transport.carrier,
            farm.transport.reason and f": {farm.transport.reason}",
            total - done,
            total,
        )
        if run.folder is not None:
            farm.events.save(run.folder / "events.jsonl")
        with Progress(farm.events, total, done, farm.busy, farm.waiting):
            yield store
            store.close()


@contextmanager
def let_workers_write(
    store: ForecastStore, chains: Sequence[DistributedInference]
) -> Iterator[None]:
    """Let the workers, also those that join in this block, write the results of these chains."""
    with store.writer_ticket() as ticket:
        for infer in chains:
            try:
                infer.set_up(lambda rank: ("write_to", ticket, rank))
            except TaskError as error:
                raise as_config_error(error, f"rank {error.rank}: ") from None
        yield


def print_report(run: Run, store: ForecastStore) -> None:
    """Print what the run did and where its results are, and write the NetCDF file if one is wanted.

    Parameters
    ----------
    run : Run
        The run.
    store : ForecastStore
        Its store, closed.

    Raises
    ------
    TasksSkipped
        If tasks failed and ``runtime.on_error=skip``.
    """
    session = current_session()
    farm, output = session.farm, run.output
    farm.events.flush()
    totals = farm.events.totals
    if (wall := totals.end - totals.start) > 0:
        joined = totals.calls.keys() & set(farm.transport.may_join)
        workers = tuple(sorted({*farm.transport.workers, *joined}))
        writers = output.writers if output.writer == "driver" else len(workers)
        on_cores = session.info.on_one_node and session.device.type == "cpu"
        cores = os.cpu_count() if on_cores else None
        engine = session.runtime.engine
        print(summarize(farm.events, wall, workers, writers, cores, engine))
    print(f"Results: {run.output_path}")
    if output.netcdf is not None:
        to_netcdf(run.output_path, output.netcdf, output.mode)
        print(f"NetCDF: {output.netcdf}")
    if store.skipped:
        raise TasksSkipped(store.skipped)
