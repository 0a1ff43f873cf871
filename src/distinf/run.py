"""The settings of a forecast run, typed; a recipe's config stops here.

Imports neither torch nor Earth2Studio, so that a wrong config ends in a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distinf.diagnostics import Placement, chains, split
from distinf.errors import ConfigError
from distinf.loading import check_outputs, check_takes_group, check_target, read_files
from distinf.options import GroupSizes, Output, Report, Runtime
from distinf.parameters import parse_ensemble, parse_lead_times, parse_members, parse_times
from distinf.statistics import are_scores, score_names, scores_of
from distinf.typed_options import check_keys, current_targets, from_mapping

_SECTIONS = (
    *("recipe", "parameters", "prognostic", "diagnostic", "perturbation", "data"),
    *("output", "report", "runtime", "slurm"),
)
_FORECAST = ("time", "nsteps", "ensemble", "output_path")
_MOST_MAPS = 12  # of one variable beside each other
_ARCHIVE = ("time", "lead_time", "ensemble", "output_path")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run computes and where it stores it; made by :func:`read_run`.

    Attributes
    ----------
    settings : Mapping[str, Any]
        The whole config, resolved.
    diagnostics : Mapping[str, Mapping[str, Any]]
        Of each diagnostic its section with ``_target_``, without the keys of its placement.
    placements : Mapping[str, Placement]
        Of each diagnostic its placement.
    data : Mapping[str, Any]
        Section with ``_target_``, for `load_section`.
    scores : tuple[str, ...]
        Names of those diagnostics that ``output.verification`` adds.
    output, runtime, report : Output, Runtime, Report
        Options of the store, of the session, and of the page about the run.
    output_path : str
        Path or URL of the store.
    report_file : Path | None
        HTML file that is written at the end; None: none is written.
    folder : Path | None
        Folder for the file of events; None: none is written.
    renamed : Mapping[str, str]
        Old names of targets in the config, and their present names.
    """

    settings: Mapping[str, Any]
    diagnostics: Mapping[str, Mapping[str, Any]]
    placements: Mapping[str, Any]
    data: Mapping[str, Any]
    scores: tuple[str, ...]
    output: Output
    runtime: Runtime
    output_path: str
    report: Report = field(default_factory=Report)
    report_file: Path | None = None
    folder: Path | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def groups(self) -> GroupSizes:
        """How many ranks run the prognostic, and each diagnostic, together."""
        ranks = {own.ranks for name, own in self.placements.items() if name not in self.scores}
        own = self.ranks if isinstance(self, ForecastRun) else 1
        return GroupSizes(own, max(ranks, default=1))

    @property
    def written_where_computed(self) -> bool:
        """Whether each rank writes its results itself."""
        return self.output.writer == "workers" or self.runtime.drivers != 1

    @property
    def chains(self) -> list[list[str]]:
        """Names of the diagnostics of each chain, in the order in which they run."""
        return chains(self.placements)


@dataclass(frozen=True, kw_only=True)
class ForecastRun(Run):
    """A run that computes its states.

    Attributes
    ----------
    times : np.ndarray
        Initial times, datetime64[ns].
    nsteps : int
        Steps of the prognostic.
    members : int | None
        Size of the ensemble; None without one.
    prognostic, perturbation : Mapping[str, Any]
        Sections with ``_target_``, for `load_section`.
    restartable : bool | None
        ``prognostic.restartable``.
    ranks : int
        ``prognostic.ranks``: ranks that run it together.
    """

    times: np.ndarray
    nsteps: int
    members: int | None
    prognostic: Mapping[str, Any]
    perturbation: Mapping[str, Any]
    restartable: bool | None
    ranks: int = 1


@dataclass(frozen=True, kw_only=True)
class ArchiveRun(Run):
    """A run whose workers read its states.

    Attributes
    ----------
    times : np.ndarray | None
        Initial times, or times of an analysis, datetime64[ns]; None: all that the data has.
    lead_times : np.ndarray | None
        Lead times, timedelta64[ns]; None: all that the data has.
    members : np.ndarray | None
        Members of the ensemble, int64; None: all that the data has.
    """

    times: np.ndarray | None
    lead_times: np.ndarray | None
    members: np.ndarray | None


def read_run(settings: Mapping[str, Any]) -> Run:
    """Check and read a config.

    Parameters
    ----------
    settings : Mapping[str, Any]
        The resolved config, in plain containers.

    Returns
    -------
    Run
        The same, typed: an `ArchiveRun` if ``parameters`` has ``lead_time``, else a `ForecastRun`.

    Raises
    ------
    ConfigError
        If a key does not exist or a value is wrong; it names the key and what would be right.
    """
    settings, renamed = current_targets(settings)
    check_keys(settings, _SECTIONS, "")
    optional = ("perturbation", "output", "report", "runtime")
    settings = {**settings, **{name: None for name in optional if name not in settings}}
    parameters = settings.get("parameters") or {}
    reads = "lead_time" in parameters
    names = _ARCHIVE if reads else _FORECAST
    check_keys(parameters, names, "parameters")
    for name in names:
        if name not in parameters:
            raise ConfigError(f"parameters.{name} is missing")
    own = _archive(settings, parameters) if reads else _forecast(settings, parameters)
    if not settings.get("diagnostic"):
        raise ConfigError("diagnostic is empty: choose at least one of its group")
    data = settings.get("data") or {}
    check_target(data, "data")
    placements, diagnostics = {}, {}
    for name, section in settings["diagnostic"].items():
        where = f"diagnostic.{name}"
        if name == "prognostic":
            raise ConfigError(f"{where}: this name is reserved for output.prognostic_variables")
        placements[name], diagnostics[name] = split(section or {}, where)
        check_target(diagnostics[name], where)
        if placements[name].ranks > 1:
            check_takes_group(diagnostics[name], where, placements[name].ranks)
    _check_ranks(placements)
    output = from_mapping(Output, settings["output"] or {}, "output")
    scores = _scores(output, placements)
    for name, (placement, section) in scores.items():
        placements[name], diagnostics[name] = placement, section
    chains(placements)
    common: dict[str, Any] = {
        "settings": settings,
        "diagnostics": diagnostics,
        "placements": placements,
        "scores": tuple(scores),
        "data": data,
        "output": output,
        "report": _report(settings["report"] or {}),
        "runtime": from_mapping(Runtime, settings["runtime"] or {}, "runtime"),
        "output_path": str(parameters["output_path"]),
        "renamed": renamed,
    }
    run = ArchiveRun(**common, **own) if reads else ForecastRun(**common, **own)
    if isinstance(run, ArchiveRun):
        _check_archive(run)
    elif run.runtime.drivers != 1 and run.output.shards is not None:
        raise ConfigError(
            f"output.shards={run.output.shards}: with runtime.drivers={run.runtime.drivers} "
            "several ranks compute the lead times of one file; leave one of the two out"
        )
    elif run.output.statistics is not None and run.members is None:
        raise ConfigError("output.statistics: a run without parameters.ensemble has no members")
    return run


def _report(section: Mapping[str, Any]) -> Report:
    report = from_mapping(Report, section, "report")
    if report.time is not None and len(parse_times(report.time, "report.time")) != 1:
        raise ConfigError(f"report.time={report.time}: must be one initial time")
    if report.lead_times is not None:
        leads = parse_lead_times(report.lead_times, "report.lead_times")
        if len(leads) > _MOST_MAPS:
            raise ConfigError(f"report.lead_times: {len(leads)} are too many, at most {_MOST_MAPS}")
    return report


def _check_ranks(placements: Mapping[str, Placement]) -> None:
    """Refuse diagnostics that run on different numbers of ranks: all share the same replicas.

    Also autocast and compilation, which the other ranks of a replica would not see.
    """
    for name, own in placements.items():
        refused = {"precision": own.precision, "compile": own.compile or None}
        for key, value in refused.items():
            if own.ranks > 1 and value is not None:
                raise ConfigError(
                    f"diagnostic.{name}.{key}={value}: not possible with "
                    f"diagnostic.{name}.ranks={own.ranks}; leave one of the two out"
                )
    ranks = {name: own.ranks for name, own in placements.items()}
    if len(set(ranks.values())) > 1:
        given = ", ".join(f"diagnostic.{name}.ranks={number}" for name, number in ranks.items())
        raise ConfigError(f"{given}: all diagnostics of a run must have the same number")


def _scores(
    output: Output, placements: Mapping[str, Placement]
) -> dict[str, tuple[Placement, dict[str, Any]]]:
    """Return the diagnostics that score the others, and the prognostic's stored variables."""
    wanted = output.verification
    if wanted is None:
        return {}
    check_target(wanted.data, "output.verification.data")
    if clash := [name for name in placements if are_scores(name)]:
        raise ConfigError(
            f"diagnostic.{clash[0]}: names that end in {scores_of('')} are those of "
            "output.verification"
        )
    if not output.members:
        return {}
    common = {
        "_target_": "distinf.models.Scores",
        "_recursive_": False,  # the data is opened where it is read
        "_convert_": "all",
        "data": dict(wanted.data),
        "only": wanted.variables,
    }
    found = {}
    for name, own in placements.items():
        rename = {
            score: renamed
            for old, new in own.rename.items()
            for score, renamed in zip(score_names(old), score_names(new), strict=True)
        }
        found[scores_of(name)] = _placed({"after": name, "rename": rename}), common
    if stored := [v for v in output.prognostic_variables if v in (wanted.variables or [v])]:
        found[scores_of("prognostic")] = _placed({}), {**common, "variables": stored}
    return found


def _placed(options: Mapping[str, Any]) -> Placement:
    return from_mapping(Placement, options, "output.verification")


def _forecast(settings: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    times, nsteps = parse_times(parameters["time"]), parameters["nsteps"]
    if type(nsteps) is not int or nsteps < 1:
        raise ConfigError(f"parameters.nsteps={nsteps}: must be a whole number, at least 1")
    members = parse_ensemble(parameters["ensemble"], settings["perturbation"])
    if members is not None:
        check_target(settings["perturbation"], "perturbation")
    prognostic = dict(settings.get("prognostic") or {})
    restartable = prognostic.pop("restartable", None)
    if restartable not in (True, False, None):
        raise ConfigError(f"prognostic.restartable={restartable}: choose true, false or null")
    ranks = prognostic.pop("ranks", None)
    ranks = 1 if ranks is None else ranks
    if type(ranks) is not int or ranks < 1:
        raise ConfigError(f"prognostic.ranks={ranks}: must be a whole number, at least 1, or null")
    check_target(prognostic, "prognostic")
    if ranks > 1:
        check_takes_group(prognostic, "prognostic", ranks)
    return {
        "times": times,
        "nsteps": nsteps,
        "members": members,
        "prognostic": prognostic,
        "perturbation": settings["perturbation"] or {},
        "restartable": restartable,
        "ranks": ranks,
    }


def _archive(settings: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("prognostic", "perturbation"):
        if settings.get(name):
            raise ConfigError(
                f"{name}: a run with parameters.lead_time reads its states and has none; remove it "
                f"(~{name})"
            )
    time, lead_time = parameters["time"], parameters["lead_time"]
    return {
        "times": None if time is None else parse_times(time),
        "lead_times": None if lead_time is None else parse_lead_times(lead_time),
        "members": parse_members(parameters["ensemble"]),
    }


def _check_archive(run: ArchiveRun) -> None:
    """Refuse options that need a prognostic."""
    if run.output.prognostic_variables:
        raise ConfigError(
            "output.prognostic_variables: a run that reads its states does not store them again"
        )
    if run.runtime.drivers != 1:
        raise ConfigError("runtime.drivers: a run that reads its states has no prognostic to share")
    if run.runtime.batch != 1:
        raise ConfigError("runtime.batch: a run that reads its states has no prognostic to batch")


def as_forecast(run: Run) -> ForecastRun:
    """Return a run that computes its states; raise `ConfigError` if it reads them."""
    if isinstance(run, ForecastRun):
        return run
    raise ConfigError(
        "parameters.lead_time: this recipe forecasts; give parameters.nsteps instead, or choose "
        "recipe=archive"
    )


def as_archive(run: Run) -> ArchiveRun:
    """Return a run that reads its states; raise `ConfigError` if it computes them."""
    if isinstance(run, ArchiveRun):
        return run
    raise ConfigError(
        "parameters.nsteps: this recipe reads its states; give parameters.lead_time instead (null: "
        "all that the data lists), or choose recipe=diagnostic"
    )


def check_files(run: Run, folders: Mapping[str, str]) -> None:
    """Check that no output would destroy something.

    Parameters
    ----------
    run : Run
        The run.
    folders : Mapping[str, str]
        Folders that hold the run, such as the checkout, by a name for errors; an output must not
        contain one of them.

    Raises
    ------
    ConfigError
        If an output overlaps what the run reads, or contains one of the folders.
    StoreError
        If something exists there that ``output.mode`` does not replace or resume.
    """
    from distinf.store import check_netcdf, check_output, check_resume, unfinished

    mode, netcdf = run.output.mode, run.output.netcdf
    outputs = {"parameters.output_path": run.output_path}
    if netcdf is not None:
        outputs["output.netcdf"] = netcdf
        outputs["output.netcdf, while it is written,"] = unfinished(netcdf)
    check_outputs(outputs, run.settings, folders)
    if netcdf is not None:
        check_netcdf(netcdf, run.output_path, mode)
    check_output(run.output_path, mode)
    if mode == "resume":
        check_resume(run.output_path, run.settings, read_files(run.settings))
