"""What the operating system knows about the processes of a run."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path


def marked(marker: str) -> list[int]:
    """Living processes whose environment, inherited from the test, holds ``marker``."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environ = (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # the process has ended
            continue
        if marker.encode() in environ and state != "Z":
            found.append(int(folder.name))
    return sorted(found)


def listening(pid: int) -> list[str]:
    """Addresses at which a process listens for TCP connections."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(link))
        except OSError:  # closed
            continue
    addresses = []
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                addresses.append(_address(family, fields[1].partition(":")[0]))
    return sorted(addresses)


def _address(family: int, text: str) -> str:
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    return socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))
