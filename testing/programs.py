"""Programs that some tests start, and the Debian packages that hold them."""

from __future__ import annotations

import os
import shutil

PACKAGES = {
    "mpirun": "openmpi-bin",
    "ip": "iproute2",
    "unshare": "util-linux",
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "srun": "slurm-wlm",
}
SLURM = ("munged", "slurmctld", "slurmd", "srun")
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"


def path_of(program: str) -> str | None:
    """Where a program is, also in the folders of daemons; None if it is not installed."""
    return shutil.which(program, path=_PATH)


def missing(*programs: str) -> str:
    """What to install for these programs; empty if all of them are there."""
    absent = [program for program in programs if path_of(program) is None]
    packages = " ".join(sorted({PACKAGES[program] for program in absent}))
    return f"needs {', '.join(absent)}: apt-get install {packages}" if absent else ""
