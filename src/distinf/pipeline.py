"""The parts of a recipe: load the models, forecast what the store lacks, store, report.

Each takes a `Run` and works inside a session, on the driver.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distinf.background import in_background
from distinf.coords import State
from distinf.diagnostics import assign
from distinf.drivers import Drivers, driver_ranks, number_of_blocks
from distinf.errors import TaskError, TasksSkipped, as_config_error
from distinf.forecast import (
    Block,
    Models,
    RestartStates,
    check_initial,
    is_restartable,
    lead_times,
    perturb,
    reached_by,
    states,
)
from distinf.html_report import Record, write_report
from distinf.inference import DistributedInference
from distinf.loading import (
    ArchiveSteps,
    import_first,
    load_section,
    read_code,
    read_files,
)
from distinf.planning import (
    StoredOutput,
    archive_steps,
    chain_factory,
    own_variables,
    verified,
)
from distinf.report import Events, Progress, summarize, write_trace
from distinf.run import ForecastRun, Run, as_archive, as_forecast
from distinf.session import current_session
from distinf.statistics import score_attributes
from distinf.store import (
    ForecastStore,
    Provenance,
    StoreLayout,
    WriterTicket,
    to_netcdf,
    vocabulary,
)
from distinf.transport import Grouped
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
    drivers : Drivers | None
        The ranks that forecast; None: rank 0 alone.
    """

    run: ForecastRun
    prognostic: Any
    data: Any
    perturbation: Any = None
    drivers: Drivers | None = None

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

    @property
    def saved_every(self) -> int | None:
        """Steps between two saved states; None: no state is saved."""
        restarts = is_restartable(self.prognostic, self.run.restartable)
        return self.run.output.restart_every if restarts else None

    def states(self, store: ForecastStore) -> Iterator[State]:
        """Forecast what a store lacks, from the newest saved state where there is one.

        Parameters
        ----------
        store : ForecastStore
            The store of this run; states are saved in it as ``output.restart_every`` says.

        Yields
        ------
        tuple[torch.Tensor | Remote, Coords]
            States [(ensemble=1,) time=1, lead_time=1, variable, ...] on the driver's device, and
            their coords. The model may reuse a state's memory for the next one. With several
            drivers, states that their ranks keep, which `StoredOutput.submit` takes as well.
        """
        if self.drivers is not None:
            return self.drivers.states(store)
        run, session = self.run, current_session()
        restart = None
        if self.saved_every is not None:
            reached = reached_by(store.marks, run.output.every)
            restart = RestartStates(store.destination, self.saved_every, reached)
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
            check=session.farm.check,
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
    farm, load = session.farm, partial(load_models, run)
    with farm.events.timed("load", "prognostic", 0):
        own = load(session.device)
    drivers = None
    if shared_out(run):
        size = session.info.world_size
        drivers = Drivers(run, farm, driver_ranks(run, size), own, load, size)
    return Forecast(run, own.prognostic, own.data, own.perturbation, drivers)


def load_models(run: ForecastRun, device: torch.device) -> Models:
    """Load what forecasts, on a device of this rank; raises as :func:`load_forecast`."""
    if run.ranks > 1:
        prognostic: Any = Grouped(partial(load_section, run.prognostic, "prognostic"))()
    else:
        prognostic = load_section(run.prognostic, "prognostic").to(device)
    data = load_section(run.data, "data")
    check_initial(prognostic, data)
    import_first("earth2studio.data")  # reads it; the workers are still loading
    if run.members is None:
        return Models(prognostic, data, None)
    kind = load_section({**run.perturbation, "_partial_": True}, "perturbation")
    return Models(prognostic, data, perturb(kind, run.runtime.seed, prognostic, data))


def shared_out(run: Run) -> bool:
    """Whether several ranks may forecast."""
    return run.runtime.drivers != 1 and current_session().info.world_size > 1


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
    if shared_out(run):
        set_drivers_apart(as_forecast(run))

    def load() -> list[DistributedInference]:
        with farm.events.timed("load", "diagnostics", 0):
            return _load_chains(run, farm.places)

    if farm.workers == (0,):  # this process alone: nothing can run beside
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


def set_drivers_apart(run: ForecastRun) -> None:
    """Let the drivers run no diagnostics, or where all ranks are drivers, those of their states."""
    session = current_session()
    farm, ranks = session.farm, driver_ranks(run, session.info.world_size)
    if run.runtime.drivers != "auto" and len(ranks) < run.runtime.drivers:
        log.warning(
            "runtime.drivers=%d: there are %d forecasts to share out (times and members, "
            "runtime.batch together), so %d rank(s) forecast",
            run.runtime.drivers,
            number_of_blocks(run),
            len(ranks),
        )
    if len(ranks) > 1:
        log.info("ranks %s forecast", ", ".join(map(str, ranks)))
    if len(ranks) == session.info.world_size:
        farm.stay_at_home()
    else:
        for rank in ranks[1:]:
            farm.set_apart(rank)


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
    if shared_out(run) and run.output.prognostic_variables:
        # The rank that gets a state writes its own variables, as a diagnostic's.
        loaded.append(DistributedInference(own_variables(run)))
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
        ExitStack() as afterwards,
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
        drivers = source.drivers if isinstance(source, Forecast) else None
        if drivers is not None or (output.writer == "workers" and farm.workers != (0,)):
            ticket = block.enter_context(let_workers_write(store, chains))
            if drivers is not None and isinstance(source, Forecast):
                drivers.save_to(ticket, source.saved_every)
            if not farm.transport.may_join and run.runtime.drivers != "auto":
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
            afterwards.callback(_save_trace, farm.events, run.folder / "trace.json")
        with Progress(farm.events, total, done, farm.status, output.writers) as progress:
            if session.metrics is not None:
                session.metrics.follow_tasks(progress.outlook)
            yield store
            store.close()


def _save_trace(events: Events, path: Path) -> None:
    """Write the timeline, also of a run that failed; a failure of this does not stop anything."""
    try:
        write_trace(events, path)
    except Exception as error:
        log.warning("the timeline could not be written: %s", error)


def _write_page(run: Run, file: Path, record: Record | None) -> None:
    """Write the page about a run; a failure of this does not make the run fail."""
    try:
        write_report(run.output_path, file, run.report, record)
        print(f"Report: {file}")
    except Exception as error:
        log.warning("the report could not be written: %s: %s", type(error).__name__, error)


@contextmanager
def let_workers_write(
    store: ForecastStore, chains: Sequence[DistributedInference]
) -> Iterator[WriterTicket]:
    """Let the workers, also those that join in this block, write the results of these chains."""
    with store.writer_ticket() as ticket:
        for infer in chains:
            try:
                infer.set_up(lambda rank: ("write_to", ticket, rank))
            except TaskError as error:
                raise as_config_error(error, f"rank {error.rank}: ") from None
        yield ticket


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
    totals, record = farm.events.totals, None
    if (wall := totals.end - totals.start) > 0:
        joined = totals.calls.keys() & set(farm.transport.may_join)
        workers = tuple(sorted({*farm.may_diagnose, *joined}))
        writers = len(workers) if run.written_where_computed else output.writers
        engine = session.runtime.engine
        together = run.groups.prognostic, run.groups.diagnostic
        facts = farm.events, workers, writers, session.cores, engine, together
        print(summarize(farm.events, wall, *facts[1:]))
        record = Record(*facts)
    print(f"Results: {run.output_path}")
    if run.report_file is not None:
        _write_page(run, run.report_file, record)
    if output.netcdf is not None:
        to_netcdf(run.output_path, output.netcdf, output.mode)
        print(f"NetCDF: {output.netcdf}")
    if store.skipped:
        raise TasksSkipped(store.skipped)
