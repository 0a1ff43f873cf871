"""Two machines on this one: each has addresses, processes and a name of its own.

They are namespaces, joined by a cable. Programs of one neither see the other's processes nor share
memory with them; files are the same.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from testing.programs import missing, path_of

_PROGRAMS = ("ip", "unshare")


@dataclass(frozen=True)
class Machine:
    """A network namespace, and what a command is put into in addition."""

    name: str
    address: str
    interface: str

    def command(self, *words: str, **variables: str) -> list[str]:
        """Return a command that runs on this machine; its end ends all that it started."""
        settings = [f"{key}={value}" for key, value in variables.items()]
        own = ["--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
        # The shell stays, for the first process of a machine has to wait for orphans.
        named = ["sh", "-c", f'hostname {self.name} && "$@"; exit $?', "sh"]
        unshare = [str(path_of("unshare")), *own, *named]
        return [str(path_of("ip")), "netns", "exec", self.name, *unshare, "env", *settings, *words]


def lacking() -> str:
    """Why there can be no such machines here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    return missing(*_PROGRAMS)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Make two machines whose interfaces are ``cable0`` and ``cable1``."""
    mark = uuid.uuid4().hex[:6]
    first, second = made = tuple(
        Machine(f"distinf-{mark}-{i}", f"10.213.77.{i + 1}", f"cable{i}") for i in (0, 1)
    )
    try:
        for one in made:
            _ip("netns", "add", one.name)
        cable = ("link", "add", first.interface, "type", "veth", "peer", second.interface)
        _ip("-n", first.name, *cable, "netns", second.name)
        for one, other in ((first, second), (second, first)):
            _ip("-n", one.name, "addr", "add", f"{one.address}/24", "dev", one.interface)
            for interface in ("lo", one.interface):
                _ip("-n", one.name, "link", "set", interface, "up")
            # Programs find their own address by the way to the world.
            _ip("-n", one.name, "route", "add", "default", "via", other.address)
        yield first, second
    finally:
        for one in made:
            subprocess.run(
                [str(path_of("ip")), "netns", "delete", one.name], check=False, timeout=30
            )


def _ip(*words: str) -> None:
    subprocess.run([str(path_of("ip")), *words], check=True, timeout=30)
