"""The parts of a recipe: load the models, plan the outputs, forecast what the store lacks.

Each takes a `Run` and works inside a session, on the driver.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from distinf.background import in_background
from distinf.coords import Coords, Selection, State, plan_subset
from distinf.diagnostics import ArchiveChain, Chain, Link, StoredSubset, assign
from distinf.errors import ConfigError, TaskError, TasksSkipped, as_config_error
from distinf.forecast import (
    Block,
    RestartStates,
    check_initial,
    is_restartable,
    lead_times,
    perturb,
    states,
    step_coords,
)
from distinf.inference import DistributedInference
from distinf.loading import (
    ArchiveSteps,
    check_reachable,
    import_first,
    load_section,
    load_weightless,
    read_code,
    read_files,
    weight_free,
)
from distinf.options import Output
from distinf.parameters import check_valid_times
from distinf.report import Progress, summarize
from distinf.run import ArchiveRun, ForecastRun, Run, as_archive, as_forecast
from distinf.session import current_session
from distinf.store import (
    ForecastStore,
    Provenance,
    StoreLayout,
    check_clashes,
    check_names,
    check_statistics,
    to_netcdf,
    vocabulary,
)
from distinf.versions import versions

log = logging.getLogger("distinf")


@dataclass(frozen=True)
class StoredOutput:
    """One source of stored variables: a chain of diagnostics, or the prognostic's own state.

    Attributes
    ----------
    grids : dict[str, Coords]
        For each diagnostic of which something is stored its coords, renamed and cut.
    diagnostics : Chain | DistributedInference | None
        What computes them; None for the prognostic's own state.
    selection : Selection | None
        What is stored of the prognostic's own state.
    """

    grids: dict[str, Coords]
    diagnostics: Any = None
    selection: Selection | None = None

    def submit(self, *state: Any) -> Future[Any]:
        """Compute them for one state (a tensor and its coords), on a worker.

        Of an archive, the coords of a step are enough.
        """
        if self.selection is not None:
            return current_session().to_host(self.selection(*state))
        return self.diagnostics.submit(*state)  # type: ignore[no-any-return]

    def missing_in(self, store: ForecastStore, coords: Coords) -> list[str]:
        """Names of the diagnostics whose result for this state is not in a store."""
        lacking = store.marks.lacking(coords)
        return [name for name in self.grids if name in lacking]


def check_run(run: Run) -> None:
    """Refuse models and data that do not fit together, as far as no weights are needed for it.

    Parameters
    ----------
    run : Run
        The run.

    Raises
    ------
    ConfigError
        Names the section, and what would be right.
    """
    for old, new in run.renamed.items():
        log.warning("_target_: %s is now called %s; the old name still works", old, new)
    check_names({name: placement.rename for name, placement in run.placements.items()})
    check_reachable(run.data, "data")
    for name, settings in run.diagnostics.items():
        check_reachable(settings, f"diagnostic.{name}")
    data: Any = load_section(run.data, "data") if weight_free(run.data) else None
    source: Any
    if isinstance(run, ArchiveRun):
        if data is None:
            return
        source = _steps(run, data)
    else:
        source = _check_forecast(as_forecast(run), data)
        if source is None:
            return
    imported = "earth2studio.models.px" in sys.modules  # and with it its diagnostics
    known = []
    for names in run.chains:
        models = {
            name: load_weightless(run.diagnostics[name], f"diagnostic.{name}", imported)
            for name in names
        }
        if None not in models.values():
            links = _links(run, {name: partial(models.get, name) for name in names})
            chain = Chain(links, _subset(run))
            reads = isinstance(run, ArchiveRun)
            known.append(ArchiveChain(lambda: data, partial(_same, chain)) if reads else chain)
    plan_outputs(run, source, known)


def _same(chain: Chain) -> Chain:
    return chain


def _check_forecast(run: ForecastRun, data: Any) -> Any:
    """Check the prognostic with the data, if it is known; return it if it can be made."""
    check_reachable(run.prognostic, "prognostic")
    for time in run.times if hasattr(data, "check_time") else ():
        data.check_time(time)
    prognostic = load_weightless(run.prognostic, "prognostic")
    if prognostic is None:
        return None
    is_restartable(prognostic, run.restartable)
    if data is not None:
        check_initial(prognostic, data)
    return prognostic


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
    run = as_archive(run)
    return _steps(run, load_section(run.data, "data"))


def _steps(run: ArchiveRun, data: Any) -> ArchiveSteps:
    return ArchiveSteps(data, run.times, run.lead_times, run.members, run.output.every)


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
        build: Any = partial(Chain, _links(run, factories), _subset(run), run.runtime.seed)
        if isinstance(run, ArchiveRun):
            build = partial(ArchiveChain, partial(load_section, run.data, "data"), build)
        build.__name__ = "+".join(names)  # what errors call it
        try:
            loaded.append(DistributedInference(build, remote_ranks=ranks[head]))
        except TaskError as error:
            raise as_config_error(error) from None
    return loaded


def _links(run: Run, factories: Mapping[str, Callable[[], Any]]) -> list[Link]:
    placed = [(name, factory, run.placements[name]) for name, factory in factories.items()]
    return [
        Link(name, factory, own.after, own.rename, own.precision, bool(own.compile), own.nonfinite)
        for name, factory, own in placed
    ]


def _subset(run: Run) -> StoredSubset:
    return StoredSubset(run.output.variables, run.output.region)


def plan_outputs(run: Run, source: Any, diagnostics: Sequence[Any]) -> list[StoredOutput]:
    """Plan what is stored, from the coordinates that the models declare.

    Parameters
    ----------
    run : Run
        The run.
    source : PrognosticModel | ArchiveSteps
        Its prognostic, or the steps of its archive.
    diagnostics : Sequence[DistributedInference]
        Its chains of diagnostics; where some are not known yet, those that are.

    Returns
    -------
    list[StoredOutput]
        One for each chain, and one for the prognostic's own variables if some are stored.

    Raises
    ------
    ConfigError
        If the models do not fit together, two outputs have the same name, ``output.variables``
        names something that nothing computes, or the forecast ends after the last possible date.
    """
    if isinstance(source, ArchiveSteps):
        state, members = next(iter(source)), source.members
    else:
        run = as_forecast(run)
        members = None if run.members is None else np.arange(run.members)
        state = step_coords(source, run.times[0], member=None if run.members is None else 0)
        check_valid_times(run.times, state["lead_time"][-1], run.nsteps)
    output = run.output
    try:
        outputs = [StoredOutput(x.output_coords(state), x) for x in diagnostics]
    except TaskError as error:
        raise as_config_error(error) from None
    if output.prognostic_variables:
        who, names = "output.prognostic_variables", output.prognostic_variables
        own = plan_subset(state, names, output.region, who, "the prognostic")
        outputs.append(StoredOutput({"prognostic": own.select_coords(state)}, selection=own))
    grids = {name: grid for output in outputs for name, grid in output.grids.items()}
    check_clashes(grids)
    if len(diagnostics) == len(run.chains):
        _check_stored(output, grids)
        check_statistics(output, members, grids)
    return outputs


def _check_stored(output: Output, grids: dict[str, Coords]) -> None:
    stored = {str(v) for grid in grids.values() for v in grid["variable"]}
    unknown = [name for name in output.variables or () if name not in stored]
    if unknown or not grids:
        raise ConfigError(
            f"output.variables={list(output.variables or ())}: no diagnostic makes "
            f"{', '.join(unknown) or 'any of them'}"
        )


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
    chains = [each.diagnostics for each in outputs if each.diagnostics is not None]
    for infer in chains:
        attributes.update(infer.variable_attributes())
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
