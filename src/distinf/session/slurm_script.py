"""The Slurm batch script of a run, from its options. Without torch, so that it is fast."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

from distinf.errors import ConfigError
from distinf.typed_options import Count, from_mapping, options_dataclass, valid_when

# The forms that sbatch's manual lists for --time and --mem.
_TIME = r"[0-9]+(:[0-9]+){0,2}|[0-9]+-[0-9]+(:[0-9]+){0,2}|(?i:unlimited|infinite)"
_MEMORY = r"\d+[KMGT]?"


def _written(form: str, right: str) -> Any:
    return valid_when(lambda value: re.fullmatch(form, str(value)), right)


_Word = Annotated[str, *_written(r"\S+", "must be one word")]
_Lines = Annotated[
    Sequence[str], AfterValidator(tuple), Field(description="must be a list of shell lines")
]


def _check_time(time: Any) -> Any:
    if isinstance(time, int | float) and not isinstance(time, bool):
        raise ConfigError(f"slurm.time={time}: {_quoted(time)}")
    if time is not None and not re.fullmatch(_TIME, str(time)):
        raise ConfigError(f"slurm.time={time}: write it like 2:00:00")
    return time


def _quoted(number: float) -> str:
    """Say how to write a time of which YAML may have made this number."""
    minutes, seconds = divmod(int(number), 60)
    clock = [f'"{minutes}:{seconds:02}"'] if minutes > 0 else []
    if minutes >= 60:
        clock.append(f'"{minutes // 60}:{minutes % 60:02}:{seconds:02}"')
    meant = f"time: {' or '.join(clock)} for a clock time, " if clock else ""
    return (
        "YAML makes such a number of a clock time, too; quote what you mean: "
        f'{meant}time: "{int(number)}" for minutes'
    )


def _check_environment(variables: Any) -> Any:
    if not isinstance(variables or {}, Mapping):
        raise ConfigError("slurm.environment must be a mapping, such as {NAME: value}")
    for name in variables or ():
        if not re.fullmatch(r"[A-Za-z_]\w*", str(name)):
            raise ConfigError(f"slurm.environment.{name}: not the name of a variable")
    return variables


@options_dataclass("slurm")
class SlurmJob:
    """What a run asks of Slurm: ``slurm.*`` of the config, explained in cfg/slurm/default.yaml."""

    action: Literal["print", "save", "submit", "none"] = "print"
    script: _Word = "distinf.sbatch"
    name: _Word = "distinf"
    account: _Word | None = None
    partition: _Word | None = None
    # No number: YAML reads an unquoted 2:00:00 as 7200.
    time: Annotated[
        str | None, PlainValidator(_check_time), Field(description="write it like 2:00:00")
    ] = None
    nodes: Count | None = None
    ntasks_per_node: Count | None = None
    gpus_per_node: Count | None = None
    cpus_per_task: Count | None = None
    mem: Annotated[str | int, *_written(_MEMORY, "write it like 200G")] | None = None
    exclusive: bool = False
    requeue: bool = False
    environment: Annotated[
        Mapping[str, Any] | None,
        PlainValidator(_check_environment),
        Field(description="must be like {NAME: value}"),
    ] = None
    lines_before: _Lines = ()
    container: _Word | None = None

    @property
    def wanted(self) -> bool:
        """Whether a batch script was asked for: any key was set."""
        return self.action != "none" and self != SlurmJob()


def read_job(section: Mapping[str, Any], given: Sequence[str]) -> SlurmJob:
    """Read the options from ``slurm`` of the config; ``given`` are the command line's overrides.

    ``slurm.time=120`` is minutes there; the same number from a file may have been ``2:00``.
    """
    for item in given:
        key, _, word = item.partition("=")
        if key.lstrip("+") == "slurm.time" and word == str(section["time"]):
            section = {**section, "time": word}
    return from_mapping(SlurmJob, section, "slurm")


def batch_script(
    job: SlurmJob, command: Sequence[str], folder: str, engine: str = "tensorpipe"
) -> str:
    """Return a bash script for sbatch that runs ``command`` (Python, main.py, overrides).

    With the engine ``"ray"`` one task on each node starts its part of a Ray cluster, and the first
    one runs the command.
    """
    on_ray = engine == "ray"
    tasks = job.ntasks_per_node or job.gpus_per_node or 2
    asked = {
        "job-name": job.name,
        "account": job.account,
        "partition": job.partition,
        "time": job.time,
        "nodes": job.nodes or 1,
        "ntasks-per-node": 1 if on_ray else tasks,
        "gpus-per-node": job.gpus_per_node,
        "cpus-per-task": job.cpus_per_task,
        "mem": job.mem,
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{key}={value}" for key, value in asked.items() if value is not None]
    lines += ["#SBATCH --exclusive"] if job.exclusive else []
    lines += ["#SBATCH --requeue", "#SBATCH --open-mode=append"] if job.requeue else []
    lines += ["", f"cd {shlex.quote(folder)} || exit 1"]
    lines += [f"export {key}={shlex.quote(str(v))}" for key, v in (job.environment or {}).items()]
    lines += job.lines_before
    # A lost worker's tasks go to the others, and ranks that lose rank 0 end by themselves.
    srun = ["srun", "--kill-on-bad-exit=0", "--wait=0"]
    if job.cpus_per_task is not None:  # srun does not take it from sbatch
        srun.append(f"--cpus-per-task={job.cpus_per_task}")
    if job.container is not None:
        here = Path(command[1]).parent
        mounts = ",".join(dict.fromkeys(f"{path}:{path}" for path in (folder, str(here))))
        srun += [f"--container-image={job.container}", f"--container-mounts={mounts}"]
        srun.append(f"--container-workdir={folder}")
        command = ["python", *command[1:]]
    start = [*map(shlex.quote, srun)]
    if on_ray:
        # Slurm runs this script on the first node. Its name may stand for loopback there.
        lines.append(
            """host=$(getent ahostsv4 "$(hostname)" | awk '$1 !~ /^127/ {print $1; exit}')"""
        )
        lines.append("host=${host:-$(hostname -I | cut -d' ' -f1)}")
        # Jobs of one node have different ports.
        lines.append('address="$host:$((20000 + SLURM_JOB_ID % 10000))"')
        if job.container is None:  # `ray` starts others of its name
            folder_of_ray = shlex.quote(str(Path(command[0]).parent))
            lines.append(f'export PATH={folder_of_ray}:"$PATH"')
            # Not every part of `ray symmetric-run` turns to the token by itself.
            lines.append("export RAY_AUTH_MODE=token")
            lines.append("ray get-auth-token --generate > /dev/null || exit 1")
        # Without --min-nodes, with which it ends with status 1: nodes may come later.
        start.append('ray symmetric-run --address "$address" --')
        if job.gpus_per_node and not any("runtime.workers=" in word for word in command):
            command = [*command, f"runtime.workers={(job.nodes or 1) * job.gpus_per_node}"]
    words = [*command]
    words += ["output.mode=resume"] if job.requeue else []
    words += ["slurm.action=none"]
    lines.append(" ".join(["exec", *start, *map(shlex.quote, words)]))
    return "\n".join(lines) + "\n"


def repeated(overrides: Sequence[str], job: SlurmJob) -> list[str]:
    """Return the overrides that the batch job's run repeats.

    Raises `ConfigError` if they contradict ``slurm.requeue``.
    """
    kept = [item for item in overrides if not re.match(r"[+~]*slurm([.=@]|$)", item)]
    modes = [item.partition("=")[2] for item in kept if item.lstrip("+").startswith("output.mode=")]
    if job.requeue and "overwrite" in modes:
        raise ConfigError(
            "slurm.requeue=true with output.mode=overwrite would begin anew each time: leave "
            "output.mode away, the script resumes and creates a store where there is none"
        )
    if job.requeue:
        kept = [item for item in kept if not item.lstrip("+").startswith("output.mode=")]
    return kept


def submit(job: SlurmJob, script: str, path: str | None = None) -> str:
    """Print, save or submit the script as ``slurm.action`` says; return what to print.

    ``path`` is the file that ``save`` writes, by default ``job.script``. Raises `ConfigError` if it
    exists with other content, or sbatch refuses the script.
    """
    if job.action == "save":
        file = Path(path or job.script)
        if file.exists() and file.read_text(encoding="utf-8") != script:
            raise ConfigError(f"{file} exists: remove it, or choose another name with slurm.script")
        file.write_text(script, encoding="utf-8")
        return f"saved {file}; submit it with: sbatch {shlex.quote(str(file))}\n"
    if job.action != "submit":
        return script
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=script, text=True, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise ConfigError("slurm.action=submit: there is no sbatch on this machine") from None
    if done.returncode != 0:
        raise ConfigError(f"sbatch refused the script: {done.stderr.strip()}")
    return f"submitted batch job {done.stdout.strip().partition(';')[0]}\n"


def submit_run(
    job: SlurmJob,
    command: Sequence[str],
    given: Sequence[str],
    more: Sequence[str],
    path: str,
    engine: str,
) -> str:
    """Print, save as ``path`` or submit the batch script that repeats this run.

    ``command`` starts it, ``given`` are its overrides, of which those of ``slurm`` are left out,
    and ``more`` are further ones; ``engine`` is ``runtime.engine``. Returns what to print.
    """
    words = [*command, *repeated(given, job), *more]
    return submit(job, batch_script(job, words, os.getcwd(), engine), path)
