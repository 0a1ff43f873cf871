"""The folder of a training: what lies there, what may be replaced, who may write."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import filelock

from distinf.errors import ConfigError, StoreError, WorkerLost
from distinf.loading import check_outputs
from distinf.training.settings import TrainingRun

PACKAGE, CHECKPOINTS, CURVE = "package.json", "checkpoints", "learning_curve.png"
_LOCK = ".distinf.lock"
# What distinf writes there, the package's mark first; mlflow.db-journal is SQLite's.
_OWN = (
    *(PACKAGE, "network.mdlus", f"part.{PACKAGE}", "part.network.mdlus"),
    *(CHECKPOINTS, CURVE, "tensorboard", "mlflow.db*"),
)
_CHECKPOINT = r"epoch_\d{6,}|part"
# One of these says that a folder is distinf's: other programs use the other names, too.
_MARKS = (PACKAGE, CHECKPOINTS, _LOCK)


def check_package(run: TrainingRun, folders: Mapping[str, str]) -> None:
    """Check that no folder would be destroyed.

    Parameters
    ----------
    run : TrainingRun
        The training.
    folders : Mapping[str, str]
        Folders that hold the run, by a name for errors; the package must not contain one of them.

    Raises
    ------
    ConfigError
        If the package is not a local folder, or overlaps what is read or one of the folders.
    StoreError
        If something exists there that is not distinf's, or that ``output.mode`` does not continue.
    """
    if "://" in run.output_path:
        raise ConfigError(f"parameters.output_path={run.output_path}: must be a local folder")
    read = {"path": run.data.path, "target_path": run.data.target_path}
    check_outputs({"parameters.output_path": run.output_path}, {"data": read}, folders)
    folder = Path(run.output_path)
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} exists and is no folder")
    if foreign := _foreign(folder):
        raise StoreError(f"{folder} exists and is no package of distinf; it holds {foreign[0]}")
    there = any(path.name != _LOCK for path in folder.glob("*"))
    if there and run.output.mode == "create":
        raise StoreError(
            f"{folder} exists: choose another parameters.output_path, output.mode=resume or "
            "output.mode=overwrite"
        )


def _foreign(folder: Path) -> list[str]:
    """Return what is not distinf's in a folder: all of it if nothing there says that it is."""
    there = {*folder.glob("*"), *folder.glob(f"{CHECKPOINTS}/*")}
    if not any((folder / name).exists() for name in _MARKS):
        found = there
    else:
        own = {path for name in (*_OWN, _LOCK) for path in folder.glob(name)}
        own |= {p for p in there if p.parent != folder and re.fullmatch(_CHECKPOINT, p.name)}
        found = there - own
        package = folder / PACKAGE
        found |= {package} if package.exists() and not _is_package(package) else set()
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _is_package(path: Path) -> bool:
    """Whether a package.json is distinf's; npm has files of this name, too."""
    try:
        named = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(named, dict) and {"inputs", "targets", "lat", "lon"} <= named.keys()


@contextmanager
def hold_package(run: TrainingRun) -> Iterator[Path]:
    """Keep other runs away from the folder of a training.

    Parameters
    ----------
    run : TrainingRun
        The training.

    Yields
    ------
    Path
        The folder; it exists.

    Raises
    ------
    StoreError
        If another run holds it, or it cannot be made.
    """
    folder = Path(run.output_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / _LOCK, timeout=0):
            yield folder
    except (KeyboardInterrupt, WorkerLost) as error:
        if any((folder / CHECKPOINTS).glob("epoch_*")):
            error.add_note(
                f"its checkpoints stay in {folder}; the same command with output.mode=resume "
                "continues from the newest one"
            )
        raise
    except filelock.Timeout:
        raise StoreError(f"another run trains into {folder}: choose another folder") from None
    except PermissionError as error:
        raise StoreError(f"{folder} cannot be written: {error}") from None


def clear_package(folder: Path) -> None:
    """Remove what an earlier training wrote into a folder."""
    for own in [path for name in _OWN for path in folder.glob(name)]:
        if own.is_dir():
            shutil.rmtree(own)
        else:
            own.unlink()
