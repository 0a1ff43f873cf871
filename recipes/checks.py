"""Checks of a config that recipes share; each ends with one clear error."""

from __future__ import annotations

from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from distinf.errors import ConfigError
from distinf.options import Output, check_keys, check_target, from_mapping, parse_times
from distinf.reach import check_reachable
from distinf.session import Runtime
from recipes.models import make

_SECTIONS = (
    "recipe",
    "parameters",
    "prognostic",
    "diagnostic",
    "data",
    "output",
    "runtime",
    "slurm",
)
_PARAMETERS = ("time", "nsteps", "output_path")


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
    check_keys(plain["parameters"], _PARAMETERS, "parameters")
    for name in _PARAMETERS:
        if name not in plain["parameters"]:
            raise ConfigError(f"parameters.{name} is missing")
    parse_times(plain["parameters"]["time"])
    nsteps = plain["parameters"]["nsteps"]
    if not isinstance(nsteps, int) or isinstance(nsteps, bool) or nsteps < 1:
        raise ConfigError(f"parameters.nsteps={nsteps}: must be a whole number, at least 1")
    from_mapping(Output, plain["output"], "output")
    if not plain["diagnostic"]:
        raise ConfigError("diagnostic is empty: choose at least one of its group")
    check_target(plain["prognostic"], "prognostic")
    check_target(plain["data"], "data")
    for name, settings in plain["diagnostic"].items():
        check_target(settings, f"diagnostic.{name}")
    return from_mapping(Runtime, plain["runtime"], "runtime")


def check_models(cfg: DictConfig) -> None:
    """Refuse models and data that do not fit together.

    Models without weights cost nothing to make, so they are made and asked here; of the others
    it is known once they are loaded.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    check_reachable(plain["prognostic"], "prognostic")
    check_reachable(plain["data"], "data")
    for name, settings in plain["diagnostic"].items():
        check_reachable(settings, f"diagnostic.{name}")

    from distinf.forecast import step_coords
    from distinf.selection import plan

    times = parse_times(plain["parameters"]["time"])
    if _is_free(plain["data"]):
        data = _make(plain["data"], "data")
        for time in times if hasattr(data, "check_time") else ():
            data.check_time(time)
    if not _is_free(plain["prognostic"]):
        return
    state = step_coords(_make(plain["prognostic"], "prognostic"), times[0])
    for name, settings in plain["diagnostic"].items():
        if _is_free(settings):
            where = f"diagnostic.{name}"
            plan(state, _make(settings, where).input_coords(), where)


def _make(settings: dict[str, Any], where: str) -> Any:
    try:
        return make(settings, where)
    except ConfigError:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _is_free(settings: dict[str, Any]) -> bool:
    target = settings["_target_"]
    return target.startswith("distinf.") and getattr(get_object(target), "weight_free", False)
