"""What Slurm's variables say, in their short forms."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from distinf.errors import ConfigError

__all__ = ["expand_hosts", "number", "tasks_of_step", "tasks_per_node"]

# Slurm's ids of what is no step of srun's: batch script, extern, interactive shell.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


def number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Read a variable that holds a count or an index.

    Raises
    ------
    ConfigError
        If it is none, or missing although there is no default.
    """
    text = env.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise ConfigError(
            f"{name} is not set, although other variables of a launcher are: start every rank "
            "with the launcher, or unset RANK and WORLD_SIZE"
        )
    if not text.strip().isdecimal():
        raise ConfigError(f"{name}={text}: must be a whole number, at least 0")
    return int(text)


def tasks_of_step(env: Mapping[str, str]) -> int:
    """Count the tasks of the srun that this process is in; 0 if it is in none."""
    step = env.get("SLURM_STEP_ID", "")
    if not step.isdecimal() or int(step) >= _FIRST_SPECIAL_STEP or "SLURM_PROCID" not in env:
        return 0
    return number(env, "SLURM_STEP_NUM_TASKS", number(env, "SLURM_NTASKS", 1))


def tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's short form: ``"2(x3),1"`` is 2, 2, 2, 1."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def expand_hosts(text: str) -> list[str]:
    """Expand Slurm's short form of host names.

    Parameters
    ----------
    text : str
        Such as ``"login,gpu[01-03,7]-ib"``.

    Returns
    -------
    list[str]
        Such as login, gpu01-ib, gpu02-ib, gpu03-ib, gpu7-ib.
    """
    hosts: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        parts = [_expand_part(part) for part in re.split(r"(\[[^\]]*\])", name)]
        hosts += ["".join(combination) for combination in itertools.product(*parts)]
    return hosts


def _expand_part(part: str) -> list[str]:
    if not part.startswith("["):
        return [part]
    numbers: list[str] = []
    for item in part[1:-1].split(","):
        first, _, last = item.partition("-")
        width = len(first)
        numbers += [f"{n:0{width}d}" for n in range(int(first), int(last or first) + 1)]
    return numbers
