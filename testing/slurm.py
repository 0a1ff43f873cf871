"""A real Slurm of two nodes on this machine: controller and node daemons in a folder of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from testing.programs import SLURM, missing, path_of

# mpirun starts its ranks itself only on a node that has this machine's own name.
HOST = socket.gethostname().split(".")[0]
NODES = (HOST, f"{HOST}-b")
_START_SECONDS = 60.0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def _configuration(folder: Path, munge: Path) -> str:
    """slurm.conf of a cluster whose nodes all are this machine."""
    controller, *ports = _free_ports(1 + len(NODES))
    lines = [
        f"ClusterName={folder.name.lower()}",  # several clusters may be here at the same time
        f"SlurmctldHost={HOST}(127.0.0.1)",
        f"SlurmctldPort={controller}",
        f"SlurmUser={getpass.getuser()}",
        f"SlurmdUser={getpass.getuser()}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={munge}",
        "CredType=cred/munge",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "MpiDefault=none",
        "ReturnToService=2",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SlurmdParameters=config_overrides",
        "KillWait=2",
        "MailProg=/bin/true",
    ]
    size = "CPUs=8 RealMemory=64000"
    lines += [
        f"NodeName={node} NodeHostname={HOST} NodeAddr=127.0.0.1 Port={port} {size}"
        for node, port in zip(NODES, ports, strict=True)
    ]
    lines.append(f"PartitionName=main Nodes={','.join(NODES)} Default=YES OverSubscribe=FORCE:4")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _daemon(command: list[str], log: Path, env: dict[str, str]) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", *command],  # whatever ends this process ends it
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env=env,
            cwd=log.parent,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start the daemons; yields the environment in which sbatch and srun find them."""
    if lacking := missing(*SLURM):
        raise FileNotFoundError(lacking)
    # The path of a Unix socket may have at most 107 characters, so munge gets a short one.
    folder = Path(tempfile.mkdtemp(prefix="distinf-slurm-"))
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        key, munge = folder / "munge.key", folder / "munge.socket"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        conf = folder / "slurm.conf"
        conf.write_text(_configuration(folder, munge))
        env = {**os.environ, "SLURM_CONF": str(conf)}
        files = [f"--{name}-file={folder}/munged.{name}" for name in ("log", "pid", "seed")]
        stack.enter_context(
            _daemon(
                [
                    *(path_of("munged"), "--foreground", "--force", f"--key-file={key}"),
                    *(f"--socket={munge}", *files),
                ],
                folder / "munged.out",
                env,
            )
        )
        _until(munge.exists, "munged opened no socket", folder)
        stack.enter_context(
            _daemon([path_of("slurmctld"), "-D", "-c"], folder / "slurmctld.out", env)
        )
        for node in NODES:
            stack.enter_context(
                _daemon(
                    [path_of("slurmd"), "-D", "-N", node, "-f", str(conf)],
                    folder / f"slurmd-{node}.out",
                    env,
                )
            )
        _until(lambda: _idle(env), "the nodes are not ready", folder)
        yield {"SLURM_CONF": str(conf)}
        subprocess.run(["scancel", "--user", getpass.getuser()], env=env, check=False, timeout=30)
        _until(lambda: _idle(env), "jobs are left", folder)


def _idle(env: dict[str, str]) -> bool:
    shown = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%t"],
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return shown.stdout.split() == ["idle"] * len(NODES)


def _until(ready: object, what: str, folder: Path) -> None:
    assert callable(ready)
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            said = "\n".join(
                f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
                for path in sorted(folder.glob("*.*"))
                if path.suffix in (".log", ".out")
            )
            raise AssertionError(f"{what} after {_START_SECONDS:g} s\n{said}")
        time.sleep(0.05)


if __name__ == "__main__":
    with cluster() as environment:
        print(*(f"export {key}={value}" for key, value in environment.items()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
