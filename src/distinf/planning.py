"""The plan of a run: what is stored, from the coordinates that the models declare.

The check before a run and the run itself use the same plan.
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from distinf.coords import Coords, Selection, plan_subset
from distinf.diagnostics import ArchiveChain, Chain, Itself, Link, StoredSubset
from distinf.errors import ConfigError, TaskError, as_config_error
from distinf.forecast import (
    check_initial,
    is_restartable,
    lead_times,
    step_coords,
)
from distinf.loading import (
    ArchiveSteps,
    Truth,
    check_reachable,
    load_section,
    load_weightless,
    weight_free,
)
from distinf.options import Output
from distinf.parameters import check_valid_times, parse_lead_times, parse_times
from distinf.run import ArchiveRun, ForecastRun, Run, as_archive, as_forecast
from distinf.session import current_session
from distinf.statistics import score_names, statistic_names
from distinf.store import (
    ForecastStore,
    Verified,
    check_clashes,
    check_names,
    check_statistics,
)
from distinf.transport import Grouped

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
    sections = {"data": run.data}
    if isinstance(run, ForecastRun):
        sections = {"prognostic": run.prognostic, **sections}
    sections.update({f"diagnostic.{name}": own for name, own in run.diagnostics.items()})
    verification = run.output.verification
    if verification is not None:
        sections["output.verification.data"] = verification.data
    unread = run.scores if verification and not weight_free(verification.data) else ()
    for where, settings in sections.items():
        check_reachable(settings, where)
    data: Any = load_section(run.data, "data") if weight_free(run.data) else None
    source: Any = None
    if isinstance(run, ForecastRun):
        source = _check_forecast(run, data)
    elif data is not None:
        source = archive_steps(as_archive(run), data)
    if source is None:
        return
    imported = "earth2studio.models.px" in sys.modules  # and with it its diagnostics
    known: list[Any] = []
    for names in run.chains:
        models = {
            name: load_weightless(run.diagnostics[name], f"diagnostic.{name}", imported)
            for name in names
            if name not in unread
        }
        if models and None not in models.values():
            factories = {name: partial(models.get, name) for name in names}
            known.append(chain_factory(run, factories, lambda: data)())
    plan_outputs(run, source, known)


def _check_forecast(run: ForecastRun, data: Any) -> Any:
    """Check the prognostic with the data, if it is known; return it if it can be made."""
    for time in run.times if hasattr(data, "check_time") else ():
        data.check_time(time)
    prognostic = load_weightless(run.prognostic, "prognostic")
    if prognostic is None:
        return None
    is_restartable(prognostic, run.restartable)
    if data is not None:
        check_initial(prognostic, data)
    return prognostic


def archive_steps(run: ArchiveRun, data: Any) -> ArchiveSteps:
    """Return the steps that a run takes of its data."""
    return ArchiveSteps(data, run.times, run.lead_times, run.members, run.output.every)


def chain_factory(
    run: Run, factories: Mapping[str, Callable[[], Any]], source: Callable[[], Any]
) -> Callable[[], Any]:
    """Return what makes a chain of diagnostics on a worker.

    ``factories`` make its models; ``source`` makes the data source, if the worker reads.
    """
    placed = [
        (name, _over_ranks(name, factory, run), run.placements[name])
        for name, factory in factories.items()
    ]
    links = [
        Link(
            name,
            factory,
            own.after,
            own.rename,
            own.precision,
            bool(own.compile),
            own.nonfinite,
            whole=name in run.scores,
        )
        for name, factory, own in placed
    ]
    subset = StoredSubset(run.output.variables, run.output.region)
    chain = partial(Chain, links, subset, run.runtime.seed)
    return partial(ArchiveChain, source, chain) if isinstance(run, ArchiveRun) else chain


def _over_ranks(name: str, factory: Callable[..., Any], run: Run) -> Callable[[], Any]:
    """Let a factory make its model on all ranks of a replica, if it runs on several."""
    loads = isinstance(factory, partial) and factory.func is load_section
    return Grouped(factory) if loads and run.placements[name].ranks > 1 else factory


def own_variables(run: Run) -> Callable[[], Chain]:
    """Return what makes a chain that stores ``output.prognostic_variables`` of a state."""
    itself = partial(Itself, tuple(run.output.prognostic_variables))
    links = [Link("prognostic", itself, nonfinite="allow")]
    made: Any = partial(Chain, links, StoredSubset(None, run.output.region), run.runtime.seed)
    made.__name__ = "prognostic"  # what errors call it
    return made  # type: ignore[no-any-return]


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
    if output.prognostic_variables and not any("prognostic" in own.grids for own in outputs):
        who, names = "output.prognostic_variables", output.prognostic_variables
        own = plan_subset(state, names, output.region, who, "the prognostic")
        outputs.append(StoredOutput({"prognostic": own.select_coords(state)}, selection=own))
    grids = {name: grid for output in outputs for name, grid in output.grids.items()}
    check_clashes(grids)
    if len(diagnostics) >= len(run.chains):
        _check_stored(output, grids)
        check_statistics(output, members, grids)
        _check_verified(run, grids)
        _check_reported(run, grids, source)
    return outputs


def verified(run: Run, members: np.ndarray | None, grids: Mapping[str, Coords]) -> Verified | None:
    """Return what the members of a run are compared with; None without members or data."""
    wanted = run.output.verification
    if wanted is None or members is None:
        return None
    old = {
        name: {new: old for old, new in run.placements[name].rename.items()}
        for name in grids
        if name in run.placements
    }
    compared = {}
    for name, coords in grids.items():
        names = [] if name in run.scores else [str(v) for v in coords["variable"]]
        own = old.get(name, {})
        chosen = [v for v in names if own.get(v, v) in (wanted.variables or [own.get(v, v)])]
        if chosen:
            compared[name] = chosen
    truth = Truth(wanted.data)

    def read(name: str, valid: np.datetime64, coords: Coords) -> np.ndarray:
        own = old.get(name, {})
        names = np.array([own.get(v, v) for v in map(str, coords["variable"])])
        return truth.on_grid(valid, OrderedDict(coords, variable=names)).numpy()

    return Verified(compared, read)


def _check_verified(run: Run, grids: Mapping[str, Coords]) -> None:
    """Refuse variables of ``output.verification`` that are not computed."""
    wanted = run.output.verification
    scored = {str(v) for name in run.scores if name in grids for v in grids[name]["variable"]}
    for variable in (wanted.variables or ()) if wanted is not None and run.scores else ():
        (name, *_) = score_names(variable)
        if not scored & {name, *(run.placements[own].rename.get(name) for own in run.scores)}:
            raise ConfigError(
                f"output.verification.variables: {variable} is neither a result of a diagnostic "
                "nor among output.prognostic_variables"
            )


def _check_reported(run: Run, grids: Mapping[str, Coords], source: Any) -> None:
    """Refuse variables and times of the report that the store will not have."""
    wanted = run.report
    if isinstance(run, ForecastRun):
        times, leads = run.times, lead_times(source, run.nsteps)[:: run.output.every]
    else:
        times, leads = source.times, source.lead_times
    if wanted.time is not None and parse_times(wanted.time)[0] not in times:
        raise ConfigError(f"report.time={wanted.time}: the run has no such initial time")
    if wanted.lead_times is not None:
        for lead in np.setdiff1d(parse_lead_times(wanted.lead_times), leads):
            hours = lead / np.timedelta64(1, "h")
            raise ConfigError(f"report.lead_times: the run stores no lead time of {hours:g} h")
    stored = {str(v) for grid in grids.values() for v in grid["variable"]}
    if run.output.statistics is not None:
        members = stored if run.output.members else set()
        stored = members.union(*(statistic_names(run.output.statistics, v) for v in stored))
    for name in run.report.variables or ():
        if name not in stored:
            raise ConfigError(
                f"report.variables: nothing makes {name}; the store will have "
                f"{', '.join(sorted(stored))}"
            )


def _check_stored(output: Output, grids: dict[str, Coords]) -> None:
    stored = {str(v) for grid in grids.values() for v in grid["variable"]}
    unknown = [name for name in output.variables or () if name not in stored]
    if unknown or not grids:
        raise ConfigError(
            f"output.variables={list(output.variables or ())}: no diagnostic makes "
            f"{', '.join(unknown) or 'any of them'}"
        )
