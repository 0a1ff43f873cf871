"""Start a recipe: config name -> recipe function, inside a session.

python main.py                                          # cfg/shallow_water.yaml, own ranks
torchrun --standalone --nnodes=1 --nproc-per-node=3 main.py --config-name=shallow_water
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

# Here, so that errors reach this file instead of being printed by Hydra, on every rank.
os.environ["HYDRA_FULL_ERROR"] = "1"
# TensorPipe warns of every connection that ends, also at a normal end.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distinf.errors import ConfigError, DistinfError, Interrupted, NoDriver
from distinf.session import (
    batch_script,
    default_nproc,
    follow_launcher,
    leave_if_superfluous,
    rank_info,
    read_job,
    repeated,
    session,
    submit,
    tells_errors,
)

HERE = Path(__file__).parent
CONFIG_FOLDERS = ("--config-path", "--config-dir", "-cp", "-cd")
# Only the driver logs, and only it has a run directory.
QUIET = [
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
]


@hydra.main(version_base="1.3", config_path="cfg", config_name="shallow_water")
def run(cfg: DictConfig) -> None:
    """Run one job of Hydra's."""
    with explained():  # inside, too: Hydra would announce the error first, on every rank
        start(cfg)


def start(cfg: DictConfig) -> None:
    """Check the config, open the session, run the recipe on the driver."""
    if str(HERE) not in sys.path:  # started by somebody who brought this function elsewhere
        sys.path.insert(0, str(HERE))
    from recipes.checks import check_structure
    from recipes.place import check_own, own_path, repeated_places

    runtime = check_structure(cfg)
    section: Any = OmegaConf.to_container(cfg.slurm, resolve=True)
    job = read_job(section, HydraConfig.get().overrides.task)
    if job.wanted:
        place = rank_info()
        if place is None or place.rank == 0:
            check_own(cfg)
            again = [*repeated(overrides(), job), *repeated_places(cfg)]
            script = batch_script(job, [*command(), *again], os.getcwd())
            print(submit(job, script, own_path(job.script)), end="", flush=True)
        return
    nproc = runtime.nproc or default_nproc()
    with session(
        runtime, nproc, preflight=lambda: find_recipe(cfg).check(cfg), must_match=settings(cfg)
    ) as rank:
        if rank == 0:
            getattr(find_recipe(cfg), cfg.recipe)(cfg)


def command() -> list[str]:
    """Return the words that start a run of this config, without its overrides."""
    words = [sys.executable, str(HERE / "main.py")]
    before = ""
    for arg in sys.argv[1:]:  # --config-dir=folder, or --config-dir folder
        if re.match(r"(--config-(path|dir)|-cp|-cd)(=|$)", arg) or before in CONFIG_FOLDERS:
            words.append(arg)
        before = arg
    return [*words, f"--config-name={HydraConfig.get().job.config_name}"]


def overrides() -> list[str]:
    """Return the overrides of this job of Hydra's, and those of Hydra itself."""
    own = [arg for arg in sys.argv[1:] if re.match(r"\+*hydra[./]", arg) and arg not in QUIET]
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
        for path in (HERE / "recipes").glob("*.py")
        if f"\ndef {path.stem}(" in path.read_text(encoding="utf-8")
    )
    if cfg.recipe not in names:
        raise ConfigError(f"recipe={cfg.recipe} does not exist; the recipes are {', '.join(names)}")
    return importlib.import_module(f"recipes.{cfg.recipe}")


@contextmanager
def explained() -> Iterator[None]:
    """Say once what went wrong in the block, and end the process with a status."""
    try:
        yield
    except KeyboardInterrupt as error:
        fail(". ".join(["interrupted", *notes(error)]), 130)
    except Interrupted as error:
        fail(". ".join([str(error), *notes(error)]), 143)
    except NoDriver as error:
        fail(f"error: {error}", anyone=True)
    except DistinfError as error:
        fail("\n".join([f"error: {error}", *notes(error)]))
    except (HydraException, OmegaConfBaseException) as error:
        fail(f"error: {explain(error)}")
    except Exception as error:
        fail("".join(["error:\n", *traceback.format_exception(error)]))


def explain(error: Exception) -> str:
    """Say what is wrong in one paragraph that lists what would be right."""
    text = str(error)
    if match := re.match(r"Cannot find primary config '(.+?)'", text):
        names = sorted(path.stem for path in (HERE / "cfg").glob("*.yaml"))
        return f"--config-name={match[1]} does not exist; the configs are {', '.join(names)}"
    if match := re.match(r"Could not override '(.+?)'", text):
        return explain_key(match[1])
    return text.split("\nConfig search path")[0].strip()


def explain_key(key: str) -> str:
    """List the keys beside which a misspelt one would stand."""
    from omegaconf import OmegaConf

    from distinf.options import check_keys

    name = next((a.split("=", 1)[1] for a in sys.argv if a.startswith("--config-name=")), None)
    choices = [
        arg for arg in sys.argv[1:] if (HERE / "cfg" / arg.split("=")[0]).is_dir() and "=" in arg
    ]
    with hydra.initialize_config_dir(str(HERE / "cfg"), version_base="1.3"):
        base = hydra.compose(name or "shallow_water", choices)
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


def fail(message: str, status: int = 1, anyone: bool = False) -> NoReturn:
    """Print one error for all ranks, and end with a status; ``anyone``: on this rank anyway."""
    if anyone or tells_errors():
        sys.stdout.flush()
        print(f"distinf: {message}", file=sys.stderr, flush=True)
    else:
        # A launcher ends all ranks when the first one ends: let the driver speak first.
        time.sleep(5)
    sys.exit(status)


def terminated(number: int, frame: FrameType | None) -> None:
    """Turn a batch system's SIGTERM into an exception, so that what was written is kept."""
    raise Interrupted(f"ended by {signal.Signals(number).name}")


def main() -> None:
    """Run, and say what went wrong once."""
    with explained():
        place = rank_info()
        leave_if_superfluous(place)
        scripted = any(re.match(r"\+*slurm[.=]", arg) for arg in sys.argv[1:])
        if place is not None and place.rank != 0:
            # Hydra writes down what it sweeps over, on every rank.
            scratch = tempfile.TemporaryDirectory(prefix="distinf-")
            sys.argv += [*QUIET, f"hydra.sweep.dir={scratch.name}", "hydra.sweep.subdir=."]
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        else:
            if scripted and not {"-m", "--multirun"} & set(sys.argv):
                sys.argv += QUIET  # nothing runs here
            signal.signal(signal.SIGTERM, terminated)
        follow_launcher(place)
        run()


def notes(error: BaseException) -> list[str]:
    """Return what was added to an error on its way."""
    return list(getattr(error, "__notes__", []))


if __name__ == "__main__":
    main()
