"""What main.py does around a recipe: the command line, batch scripts, explanations of errors."""

from __future__ import annotations

import atexit
import importlib
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distinf import (
    ConfigError,
    DistinfError,
    Interrupted,
    NoDriver,
    check_keys,
    default_nproc,
    follow_launcher,
    leave_if_superfluous,
    rank_info,
    read_job,
    submit_run,
    tells_errors,
)
from recipes.shared.checks import read_run
from recipes.shared.output_path import check_own, own_path, repeated_places

__all__ = [
    "explained",
    "find_recipe",
    "made_batch_script",
    "number_of_ranks",
    "prepare",
    "read",
    "settings",
]

_HOME = Path(__file__).resolve().parents[2]
_CONFIG_FOLDERS = ("--config-path", "--config-dir", "-cp", "-cd")
# Only the driver logs, and only it has a run directory.
_QUIET = [
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
]


def prepare() -> None:
    """Let only the driver log, have a run directory and be stopped by signals."""
    info = rank_info()
    leave_if_superfluous(info)
    scripted = _asks_for_script(sys.argv[1:])
    if info is not None and info.rank != 0:
        # Hydra writes down what it sweeps over, on every rank.
        scratch = tempfile.mkdtemp(prefix="distinf-")
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        sys.argv += [*_QUIET, f"hydra.sweep.dir={scratch}", "hydra.sweep.subdir=."]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        if scripted and not {"-m", "--multirun"} & set(sys.argv):
            sys.argv += _QUIET  # nothing runs here
        signal.signal(signal.SIGTERM, _terminated)
    follow_launcher(info)


def made_batch_script(cfg: DictConfig) -> bool:
    """Print, save or submit the batch script of this run, if one is asked for."""
    section: Any = OmegaConf.to_container(cfg, resolve=True)
    given = HydraConfig.get().overrides.task
    job = read_job(section.get("slurm") or {}, given)
    if not job.wanted and not _asks_for_script(given):
        return False
    info = rank_info()
    if info is None or info.rank == 0:
        check_own(cfg)
        engine = (section.get("runtime") or {}).get("engine", "tensorpipe")
        places = repeated_places(cfg)
        done = submit_run(job, _command(), _overrides(), places, own_path(job.script), engine)
        print(done, end="", flush=True)
    return True


def _asks_for_script(given: Sequence[str]) -> bool:
    """Whether overrides set any key of ``slurm``, also to its default, and do not say to run."""
    own = [arg.lstrip("+") for arg in given if re.match(r"\+*slurm[.=]", arg)]
    return bool(own) and "slurm.action=none" not in own


def _command() -> list[str]:
    """Return the words that start a run of this config, without its overrides."""
    words = [sys.executable, str(_HOME / "main.py")]
    before = ""
    for arg in sys.argv[1:]:  # --config-dir=folder, or --config-dir folder
        if re.match(r"(--config-(path|dir)|-cp|-cd)(=|$)", arg) or before in _CONFIG_FOLDERS:
            words.append(arg)
        before = arg
    return [*words, f"--config-name={HydraConfig.get().job.config_name}"]


def _overrides() -> list[str]:
    """Return the overrides of this job of Hydra's, and those of Hydra itself."""
    own = [arg for arg in sys.argv[1:] if re.match(r"\+*hydra[./]", arg) and arg not in _QUIET]
    return [*HydraConfig.get().overrides.task, *own]


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Return each setting under its full key; all ranks must have the same."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    found: dict[str, Any] = {}

    def flatten(where: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                flatten(f"{where}.{key}" if where else str(key), inner)
        else:
            found[where] = value

    flatten("", plain)
    for key in ("parameters.output_path", "output.netcdf"):
        found.pop(key, None)  # the driver's; it may hold the time of day
    return found


def find_recipe(cfg: DictConfig) -> ModuleType:
    """Import the module of the recipe that the config names."""
    names = sorted(
        path.stem
        for path in (_HOME / "recipes").glob("*.py")
        if f"\ndef {path.stem}(" in path.read_text(encoding="utf-8")
    )
    recipe = cfg.get("recipe")
    if recipe not in names:
        raise ConfigError(f"recipe={recipe} does not exist; the recipes are {', '.join(names)}")
    return importlib.import_module(f"recipes.{recipe}")


def read(cfg: DictConfig) -> Any:
    """Read a config into typed settings, which have ``runtime``: as the recipe does, if it does."""
    return getattr(find_recipe(cfg), "read", read_run)(cfg)


def number_of_ranks(cfg: DictConfig) -> int:
    """Return how many ranks to start, if no launcher did: those of the config, or of the recipe."""
    own = OmegaConf.select(cfg, "runtime.nproc")
    return own or getattr(find_recipe(cfg), "RANKS", None) or default_nproc()


@contextmanager
def explained() -> Iterator[None]:
    """Say once what went wrong in the block, and end the process with a status."""
    try:
        yield
    except Interrupted as error:
        _fail(". ".join([str(error), *_notes(error)]), 143)
    except KeyboardInterrupt as error:
        _fail(". ".join(["interrupted", *_notes(error)]), 130)
    except NoDriver as error:
        _fail(f"error: {error}", anyone=True)
    except DistinfError as error:
        _fail("\n".join([f"error: {error}", *_notes(error)]))
    except (HydraException, OmegaConfBaseException) as error:
        _fail(f"error: {_explain(error)}")
    except Exception as error:
        if str(error).startswith("Config group override must be"):  # a ValueError of Hydra
            _fail(f"error: {_explain_null() or error}")
        _fail("".join(["error:\n", *traceback.format_exception(error)]))


def _explain(error: Exception) -> str:
    """Say what is wrong in one paragraph that lists what would be right."""
    text = str(error)
    if match := re.match(r"Cannot find primary config '(.+?)'", text):
        names = sorted(path.stem for path in (_HOME / "cfg").glob("*.yaml"))
        return f"--config-name={match[1]} does not exist; the configs are {', '.join(names)}"
    if match := re.match(r"Could not override '(.+?)'", text):
        with suppress(HydraException):  # a config in a folder of the user's
            return _explain_key(match[1])
    return text.split("\nConfig search path")[0].strip()


def _explain_null() -> str:
    """Say how to leave out a config group."""
    given = [arg.partition("=")[0] for arg in sys.argv[1:] if arg.endswith("=null")]
    groups = [name for name in given if (_HOME / "cfg" / name).is_dir()]
    return "; ".join(
        f"{name}=null is no choice of this group: ~{name} leaves it out" for name in groups
    )


def _explain_key(key: str) -> str:
    """List the keys beside which a misspelt one would stand."""
    names = re.findall(r"^(?:--config-name|-cn)[=\n](.+)", "\n".join(sys.argv[1:]), re.M)
    choices = [
        arg for arg in sys.argv[1:] if (_HOME / "cfg" / arg.split("=")[0]).is_dir() and "=" in arg
    ]
    with hydra.initialize_config_dir(str(_HOME / "cfg"), version_base="1.3"):
        base = hydra.compose(names[-1] if names else "shallow_water", choices)
    *parents, last = key.split(".")
    where: list[str] = []
    node = base
    for part in (*parents, last):
        keys = [str(k) for k in node] if OmegaConf.is_dict(node) else []
        try:
            check_keys([part], keys, ".".join(where))
        except ConfigError as error:
            return str(error)
        where.append(part)
        node = node._get_node(part)
    return f"{key} cannot be set"


def _fail(message: str, status: int = 1, anyone: bool = False) -> NoReturn:
    """Print one error for all ranks, and end with a status; ``anyone``: on this rank anyway."""
    if anyone or tells_errors():
        sys.stdout.flush()
        print(f"distinf: {message}", file=sys.stderr, flush=True)
    else:
        # A launcher ends all ranks when the first one ends: let the driver speak first.
        time.sleep(5)
    sys.exit(status)


def _terminated(number: int, frame: FrameType | None) -> None:
    """Turn a batch system's SIGTERM into an exception, so that what was written is kept."""
    raise Interrupted(f"ended by {signal.Signals(number).name}")


def _notes(error: BaseException) -> list[str]:
    """Return what was added to an error on its way."""
    return list(getattr(error, "__notes__", []))
