"""Pack what a GPU machine without a package index lacks, for its own Python and torch.

    uv run --with pip python -m benchmarks.offline      # writes .gpu/site.tar.xz
    mkdir site && tar xf site.tar.xz -C site            # there; Python's tarfile does it, too
    PYTHONPATH=$PWD/site:$PWD/src:$PWD python -m benchmarks.gpu

An environment that uv has made has no pip of its own. The paths are absolute because tests start
programs in other folders.

The other machine has torch 2.11, Python 3.12, numpy, pandas, pyarrow, h5py, matplotlib, pytest,
pytest-timeout and pytest-xdist, and what they need. Without what no part uses the rest has 40 MB:

- warp's native library (a GPU compiler of 300 MB), which PhysicsNeMo imports and AFNO never calls;
  so ``warp.init()`` does nothing there;
- botocore's descriptions of services other than S3.

torch-harmonics is the newest release whose extensions load with torch 2.11.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGES = Path(__file__).with_suffix(".txt")
GLIBC = (5, 12, 17, 24, 27, 28, 31, 34, 35)  # pip takes these tags exactly
LEFT_OUT = ("warp/bin", "warp/native", "warp/examples", "warp/tests")
SERVICES = ("s3", "sts", "sso", "signin")
NO_WARP = """

def init():
    '''Do nothing: the native library is not here.'''
"""


def download(package: str, python: str, folder: Path) -> None:
    """Download one wheel for the other machine; a package without wheels is built here."""
    tags = [f"manylinux_2_{n}_x86_64" for n in GLIBC]
    tags += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
    pip = [sys.executable, "-m", "pip"]
    there = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    there += [word for tag in tags for word in ("--platform", tag)]
    common = ["-q", "--no-deps", package]
    done = subprocess.run(
        [*pip, "download", *common, *there, "-d", str(folder)], check=False, capture_output=True
    )
    if done.returncode != 0:
        subprocess.run([*pip, "wheel", *common, "-w", str(folder)], check=True)


def strip(site: Path) -> None:
    """Remove what no part uses."""
    for name in LEFT_OUT:
        shutil.rmtree(site / name, ignore_errors=True)
    for folder in (site / "botocore" / "data").iterdir():
        if folder.is_dir() and folder.name not in SERVICES:
            shutil.rmtree(folder)
    with (site / "warp" / "__init__.py").open("a") as module:
        module.write(NO_WARP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--into", type=Path, default=Path(".gpu"), help="folder of the archive")
    args = parser.parse_args()
    if importlib.util.find_spec("pip") is None:
        sys.exit("pip is not installed: uv run --with pip python -m benchmarks.offline")
    with tempfile.TemporaryDirectory() as scratch:
        wheels, site = Path(scratch) / "wheels", Path(scratch) / "site"
        for package in PACKAGES.read_text().split():
            print(package, flush=True)
            download(package, args.python, wheels)
        for wheel in sorted(wheels.iterdir()):
            zipfile.ZipFile(wheel).extractall(site)
        strip(site)
        args.into.mkdir(exist_ok=True)
        path = args.into / "site.tar.xz"
        with tarfile.open(path, "w:xz", preset=2) as archive:
            for entry in sorted(site.iterdir()):
                archive.add(entry, entry.name)
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
