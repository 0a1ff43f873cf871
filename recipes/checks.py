"""Checks of a config that recipes share; each ends with one clear error."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from distinf.diagnostics import chains, split
from distinf.errors import ConfigError
from distinf.loading import caches, check_reachable, check_target, inputs
from distinf.options import Output, check_keys, from_mapping
from distinf.parameters import check_valid_times, parse_ensemble, parse_times
from distinf.paths import check_overlap, lies_in
from distinf.session import Runtime
from distinf.store import check_netcdf, unfinished
from recipes.models import is_weight_free, take_restartable, weightless
from recipes.place import check_own, netcdf_path, output_path, run_folder

_SECTIONS = (
    *("recipe", "parameters", "prognostic", "diagnostic", "perturbation", "data"),
    *("output", "runtime", "slurm"),
)
_CHECKOUT = Path(__file__).resolve().parent.parent
_PARAMETERS = ("time", "nsteps", "ensemble", "output_path")


def check_structure(cfg: DictConfig) -> Runtime:
    """Refuse keys that do not exist and options out of range; the same on every rank.

    Nothing of Earth2Studio is imported for it, so that the answer comes at once.

    Returns
    -------
    Runtime
        The session's options.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    check_keys(plain, _SECTIONS, "")
    parameters = plain["parameters"]
    check_keys(parameters, _PARAMETERS, "parameters")
    for name in _PARAMETERS:
        if name not in parameters:
            raise ConfigError(f"parameters.{name} is missing")
    parse_times(parameters["time"])
    nsteps = parameters["nsteps"]
    if not isinstance(nsteps, int) or isinstance(nsteps, bool) or nsteps < 1:
        raise ConfigError(f"parameters.nsteps={nsteps}: must be a whole number, at least 1")
    if parse_ensemble(parameters["ensemble"], plain["perturbation"]) is not None:
        check_target(plain["perturbation"], "perturbation")
    from_mapping(Output, plain["output"], "output")
    if not plain["diagnostic"]:
        raise ConfigError("diagnostic is empty: choose at least one of its group")
    take_restartable(plain["prognostic"])
    check_target(plain["prognostic"], "prognostic")
    check_target(plain["data"], "data")
    placements = {}
    for name, settings in plain["diagnostic"].items():
        where = f"diagnostic.{name}"
        if name == "prognostic":
            raise ConfigError(f"{where}: this name is kept for output.prognostic_variables")
        placements[name], rest = split(settings, where)
        check_target(rest, where)
    chains(placements)
    return from_mapping(Runtime, plain["runtime"], "runtime")


def check_places(cfg: DictConfig) -> None:
    """Refuse outputs that would destroy what the run reads, or where it runs."""
    check_own(cfg)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    outputs = {"parameters.output_path": output_path(cfg)}
    if (netcdf := netcdf_path(cfg)) is not None:
        outputs["output.netcdf"] = netcdf
        outputs["output.netcdf, while it is written,"] = unfinished(netcdf)
    apart: dict[str, str] = {}
    around = {"the working folder": os.getcwd(), "the checkout of distinf": str(_CHECKOUT)}
    named = caches()
    for section in ("prognostic", "diagnostic", "data", "perturbation"):
        named.update(inputs(plain[section], section))
    for name, place in named.items():
        # A folder around the working folder holds more than an input or a cache.
        (around if lies_in(os.getcwd(), place) else apart)[name] = place
    if HydraConfig.initialized():
        around["the run's own folder"] = run_folder()
    check_overlap(outputs, apart, around)
    if netcdf is not None:
        check_netcdf(netcdf, output_path(cfg), cfg.output.mode)


def check_models(cfg: DictConfig) -> None:
    """Refuse models and data that do not fit together, as far as it is known without weights."""
    from distinf.store import check_names

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    parted = {name: split(s, f"diagnostic.{name}") for name, s in plain["diagnostic"].items()}
    check_names({name: placement.rename for name, (placement, _) in parted.items()})
    restartable = take_restartable(plain["prognostic"])
    check_reachable(plain["prognostic"], "prognostic")
    check_reachable(plain["data"], "data")
    for name, settings in plain["diagnostic"].items():
        check_reachable(settings, f"diagnostic.{name}")
    parameters, output = plain["parameters"], Output(**plain["output"])
    times = parse_times(parameters["time"])
    if is_weight_free(plain["data"]):
        data = weightless(plain["data"], "data")
        for time in times if hasattr(data, "check_time") else ():
            data.check_time(time)
    prognostic = weightless(plain["prognostic"], "prognostic")
    if prognostic is None:
        return

    from distinf.diagnostics import Chain, Link, StoredSubset
    from distinf.forecast import check_initial, is_restartable, step_coords
    from distinf.store import check_clashes
    from recipes.farmed import check_stored, state_plan

    is_restartable(prognostic, restartable)
    if is_weight_free(plain["data"]):
        check_initial(prognostic, data)
    state = step_coords(prognostic, times[0], member=parameters["ensemble"] and 0)
    check_valid_times(times, state["lead_time"][-1], parameters["nsteps"])
    grids = {}
    if (own := state_plan(output, state)) is not None:
        grids["prognostic"] = own.select_coords(state)
    imported = "earth2studio.models.px" in sys.modules  # and with it its diagnostics
    whole = True
    for names in chains({name: placement for name, (placement, _) in parted.items()}):
        models = {
            name: weightless(parted[name][1], f"diagnostic.{name}", imported) for name in names
        }
        if any(model is None for model in models.values()):
            whole = False
            continue
        links = [
            Link(name, partial(models.get, name), parted[name][0].after, parted[name][0].rename)
            for name in names
        ]
        subset = StoredSubset(output.variables, output.region)
        grids.update(Chain(links, subset).output_coords(state))
    check_clashes(grids)
    if whole:
        check_stored(output, grids)
