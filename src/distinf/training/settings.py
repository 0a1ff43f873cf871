"""The settings of a training, typed. Imports no torch, so that a wrong config ends in a second."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from distinf.errors import ConfigError
from distinf.loading import check_target
from distinf.options import GroupSizes, Runtime
from distinf.parameters import parse_times
from distinf.typed_options import (
    Count,
    check_keys,
    from_mapping,
    option_names,
    options_dataclass,
    valid_when,
)
from distinf.versions import install_command

_SECTIONS = (
    *("recipe", "parameters", "data", "network", "training", "output", "runtime", "slurm"),
)
# All of runtime.* that a training uses: it makes no tasks and sends no tensors.
_RUNTIME = (
    *("nproc", "threads", "seed", "start_timeout", "liveness_timeout", "expect_ranks"),
    *("interface", "metrics_port"),
)
_MISSING: tuple[Any, ...] = (None, "???", [], "")


def _are_names(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)


_Names = Annotated[Any, *valid_when(_are_names, "must be one name or a list of names")]
_Positive = Annotated[float, Field(gt=0, description="must be a number above 0")]


@options_dataclass("data")
class PairsData:
    """Where pairs of input and target are read; ``data.*`` of the config.

    Parameters
    ----------
    path : str | list[str]
        Stores of distinf, or files that xarray opens.
    inputs : str | list[str]
        Variables that the network gets.
    target : str | list[str]
        Variables that it learns, on the same grid.
    target_path : str | list[str] | None
        Where the targets lie, one for each of ``path``; by default None: in the same stores.
    held_out : str | list[str] | Mapping[str, str]
        Initial times of the pairs for validation, as ``parameters.time``.

    Raises
    ------
    ConfigError
        If a value is wrong.
    """

    path: _Names = None
    inputs: _Names = None
    target: _Names = None
    target_path: Annotated[
        Any, *valid_when(lambda v: v is None or _are_names(v), "must be paths")
    ] = None
    held_out: Any = None


@options_dataclass("training")
class Training:
    """How a network is trained; ``training.*`` of the config.

    Parameters
    ----------
    epochs : int
        Passes over the pairs, by default 20.
    batch : int
        Pairs of each rank in one step, by default 4.
    learning_rate : float
        That of Adam in the first epoch, by default 2e-3; it falls to 0 as half a cosine.
    checkpoint_every : int
        Epochs between two checkpoints, by default 1.
    memory : float
        Megabytes of pairs that a rank keeps, by default 1000; it reads others again in each epoch.
    log : str
        Where the curves are logged, too: ``"none"``, by default, ``"tensorboard"`` or ``"mlflow"``.

    Raises
    ------
    ConfigError
        If a value is wrong.
    """

    epochs: Count = 20
    batch: Count = 4
    learning_rate: _Positive = 2e-3
    checkpoint_every: Count = 1
    memory: _Positive = 1000.0
    log: Literal["none", "tensorboard", "mlflow"] = "none"

    def __post_init__(self) -> None:
        if self.log != "none" and importlib.util.find_spec(self.log) is None:
            raise ConfigError(
                f"training.log={self.log}: {self.log} is not installed: {install_command(self.log)}"
            )


@options_dataclass("output")
class PackageOutput:
    """What happens to an existing package; ``output.*`` of the config.

    Parameters
    ----------
    mode : str
        ``"create"``, by default, refuses one; ``"overwrite"`` replaces it; ``"resume"`` goes on
        from its newest checkpoint, or begins.

    Raises
    ------
    ConfigError
        If a value is wrong.
    """

    mode: Literal["create", "overwrite", "resume"] = "create"


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What a training learns and where it stores it; made by :func:`read_training`.

    Attributes
    ----------
    data : PairsData
        Where pairs are read; its names are lists.
    held_out : np.ndarray
        Initial times for validation, datetime64[ns].
    network : Mapping[str, Any]
        Section with ``_target_``, for `load_section`.
    training, output, runtime : Training, PackageOutput, Runtime
        Options.
    output_path : str
        Folder of the package.
    """

    data: Any
    held_out: np.ndarray
    network: Mapping[str, Any]
    training: Any
    output: Any
    runtime: Runtime
    output_path: str
    groups = GroupSizes()  # each rank has the whole network

    @property
    def must_match(self) -> dict[str, Any]:
        """Settings that must not change when a training is resumed, by their keys."""
        learnt = {f"data.{name}": getattr(self.data, name) for name in ("inputs", "target")}
        rates = ("epochs", "batch", "learning_rate")
        return {
            **learnt,
            "data.held_out": [str(time) for time in self.held_out],
            **{f"network.{key}": value for key, value in self.network.items()},
            **{f"training.{name}": getattr(self.training, name) for name in rates},
            "runtime.seed": self.runtime.seed,
            "runtime.threads": self.runtime.threads,
        }


def read_training(settings: Mapping[str, Any]) -> TrainingRun:
    """Check and read a config.

    Parameters
    ----------
    settings : Mapping[str, Any]
        The resolved config, in plain containers.

    Returns
    -------
    TrainingRun
        The same, typed.

    Raises
    ------
    ConfigError
        If a key does not exist or a value is wrong; it names the key and what would be right.
    """
    check_keys(settings, _SECTIONS, "")
    parameters = settings.get("parameters") or {}
    check_keys(parameters, ("output_path",), "parameters")
    if parameters.get("output_path") in _MISSING:
        raise ConfigError("parameters.output_path is missing: name the folder of the package")
    own = dict(settings.get("data") or {})
    for name in ("path", "inputs", "target", "held_out"):
        if own.get(name) in _MISSING:
            raise ConfigError(f"data.{name} is missing (cfg/train.yaml says what it is)")
    names = ("path", "inputs", "target", "target_path")
    data = from_mapping(
        PairsData, {k: _listed(v) if k in names else v for k, v in own.items()}, "data"
    )
    if data.target_path is not None and len(data.target_path) != len(data.path):
        raise ConfigError(
            f"data.target_path: {len(data.target_path)} path(s) for {len(data.path)} of data.path"
        )
    if both := sorted({*data.inputs} & {*data.target}):
        raise ConfigError(f"data.target={both[0]} is among data.inputs, too")
    network = dict(settings.get("network") or {})
    check_target(network, "network")
    runtime = from_mapping(Runtime, settings.get("runtime") or {}, "runtime")
    if runtime.engine == "ray":
        raise ConfigError(
            "runtime.engine=ray: the ranks of a training form one process group, which Ray's "
            "workers do not; choose runtime.engine=tensorpipe"
        )
    default = Runtime()
    unused = [
        f"runtime.{key}"
        for key in option_names(Runtime)
        if key not in _RUNTIME and getattr(runtime, key) != getattr(default, key)
    ]
    if unused:
        raise ConfigError(
            f"{', '.join(unused)}: without effect on a training; leave it out. Of runtime it uses "
            f"{', '.join(_RUNTIME)}"
        )
    options: Any = runtime  # mypy does not see that it is a dataclass
    alone: Runtime = replace(options, driver_works="never")  # a lost rank ends the training
    return TrainingRun(
        data=data,
        held_out=parse_times(own["held_out"], "data.held_out"),
        network=network,
        training=from_mapping(Training, settings.get("training") or {}, "training"),
        output=from_mapping(PackageOutput, settings.get("output") or {}, "output"),
        runtime=alone,
        output_path=str(parameters["output_path"]),
    )


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def names_of(value: Sequence[str]) -> str:
    """Join names for a message."""
    return ", ".join(map(str, value))
