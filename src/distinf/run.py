"""The settings of a forecast run, typed; a recipe's config stops here.

Imports neither torch nor Earth2Studio, so that a wrong config ends in a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distinf.diagnostics import chains, split
from distinf.errors import ConfigError
from distinf.loading import check_outputs, check_target, read_files
from distinf.options import Output, Runtime, check_keys, current_targets, from_mapping
from distinf.parameters import parse_ensemble, parse_times

_SECTIONS = (
    *("recipe", "parameters", "prognostic", "diagnostic", "perturbation", "data"),
    *("output", "runtime", "slurm"),
)
_PARAMETERS = ("time", "nsteps", "ensemble", "output_path")


@dataclass(frozen=True)
class Run:
    """What a run computes and where it stores it; made by :func:`read_run`.

    Attributes
    ----------
    settings : Mapping[str, Any]
        The whole config, resolved.
    times : np.ndarray
        Initial times, datetime64[ns].
    nsteps : int
        Steps of the prognostic.
    members : int | None
        Size of the ensemble; None without one.
    prognostic, data, perturbation : Mapping[str, Any]
        Sections with ``_target_``, for `load_section`.
    restartable : bool | None
        ``prognostic.restartable``.
    diagnostics : Mapping[str, Mapping[str, Any]]
        Of each diagnostic its section with ``_target_``, without the keys of its placement.
    placements : Mapping[str, Placement]
        Of each diagnostic its placement.
    output, runtime : Output, Runtime
        Options of the store and of the session.
    output_path : str
        Path or URL of the store.
    folder : Path | None
        Folder for the file of events; None: none is written.
    renamed : Mapping[str, str]
        Old names of targets in the config, and their present names.
    """

    settings: Mapping[str, Any]
    times: np.ndarray
    nsteps: int
    members: int | None
    prognostic: Mapping[str, Any]
    restartable: bool | None
    diagnostics: Mapping[str, Mapping[str, Any]]
    placements: Mapping[str, Any]
    data: Mapping[str, Any]
    perturbation: Mapping[str, Any]
    output: Output
    runtime: Runtime
    output_path: str
    folder: Path | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def chains(self) -> list[list[str]]:
        """Names of the diagnostics of each chain, in the order in which they run."""
        return chains(self.placements)


def read_run(settings: Mapping[str, Any]) -> Run:
    """Check and read a config.

    Parameters
    ----------
    settings : Mapping[str, Any]
        The resolved config, in plain containers.

    Returns
    -------
    Run
        The same, typed.

    Raises
    ------
    ConfigError
        If a key does not exist or a value is wrong; it names the key and what would be right.
    """
    settings, renamed = current_targets(settings)
    check_keys(settings, _SECTIONS, "")
    optional = ("perturbation", "output", "runtime")
    settings = {**settings, **{name: None for name in optional if name not in settings}}
    parameters = settings.get("parameters") or {}
    check_keys(parameters, _PARAMETERS, "parameters")
    for name in _PARAMETERS:
        if name not in parameters:
            raise ConfigError(f"parameters.{name} is missing")
    times, nsteps = parse_times(parameters["time"]), parameters["nsteps"]
    if type(nsteps) is not int or nsteps < 1:
        raise ConfigError(f"parameters.nsteps={nsteps}: must be a whole number, at least 1")
    members = parse_ensemble(parameters["ensemble"], settings["perturbation"])
    if members is not None:
        check_target(settings["perturbation"], "perturbation")
    if not settings.get("diagnostic"):
        raise ConfigError("diagnostic is empty: choose at least one of its group")
    prognostic, data = dict(settings.get("prognostic") or {}), settings.get("data") or {}
    restartable = prognostic.pop("restartable", None)
    if restartable not in (True, False, None):
        raise ConfigError(f"prognostic.restartable={restartable}: choose true, false or null")
    check_target(prognostic, "prognostic")
    check_target(data, "data")
    placements, diagnostics = {}, {}
    for name, section in settings["diagnostic"].items():
        where = f"diagnostic.{name}"
        if name == "prognostic":
            raise ConfigError(f"{where}: this name is reserved for output.prognostic_variables")
        placements[name], diagnostics[name] = split(section or {}, where)
        check_target(diagnostics[name], where)
    chains(placements)
    return Run(
        settings=settings,
        times=times,
        nsteps=nsteps,
        members=members,
        prognostic=prognostic,
        restartable=restartable,
        diagnostics=diagnostics,
        placements=placements,
        data=data,
        perturbation=settings["perturbation"] or {},
        output=from_mapping(Output, settings["output"] or {}, "output"),
        runtime=from_mapping(Runtime, settings["runtime"] or {}, "runtime"),
        output_path=str(parameters["output_path"]),
        renamed=renamed,
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
