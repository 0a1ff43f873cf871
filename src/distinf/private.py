"""A folder for what the processes of one user on one machine tell each other."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from distinf.errors import DistinfError

__all__ = ["private_folder"]


def private_folder(kind: type[DistinfError]) -> Path:
    """Return the folder of this user, which nobody else can read or replace.

    Raises
    ------
    DistinfError
        Of this kind, if it is somebody else's, or others may enter it.
    """
    folder = Path(tempfile.gettempdir()) / f"distinf-{os.getuid()}"
    with contextlib.suppress(FileExistsError):  # whatever it is
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not private or found.st_mode & 0o077:
        raise kind(
            f"{folder} must be a folder that belongs to user {os.getuid()} and that nobody else "
            "may enter (mode 700): remove it, or set TMPDIR to another place"
        )
    return folder
