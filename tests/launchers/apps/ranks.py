"""Ranks find each other, one call goes to every worker, and they part; as often as asked."""

from __future__ import annotations

import json
import os
import socket
import sys

from physicsnemo.distributed import DistributedManager

from distinf import DistributedInference, Runtime, session
from distinf.session.session import current_session


class Where:
    """Tells where it is."""

    def forward(self, x):
        """Pass on what came."""
        return x

    def where(self):
        """Everything that a rank knows of itself."""
        manager = DistributedManager()
        here = current_session().info
        return {
            "launcher": here.launcher,
            "rank": manager.rank,
            "world_size": manager.world_size,
            "local_rank": manager.local_rank,
            "local_world_size": here.local_world_size,
            "device": str(manager.device),
            "pid": os.getpid(),
            "node": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            "interface": os.environ.get("TP_SOCKET_IFNAME"),
        }


def main() -> None:
    """Read the options from the command line: ``sessions=2 start_timeout=5``."""
    given = {key: value for key, _, value in (arg.partition("=") for arg in sys.argv[1:])}
    sessions = int(given.pop("sessions", 1))
    settings = {"colour": os.environ.get("COLOUR", "red")}
    numbers = {k: int(v) if v.isdigit() else v for k, v in given.items()}
    runtime = Runtime(**{"start_timeout": 100.0, **numbers})
    for _ in range(sessions):
        with session(runtime, must_match=settings) as rank:
            if rank == 0:
                with DistributedInference(Where) as infer:
                    there = infer.call_func("where", rank="all")
                    own = Where().where()
                print(json.dumps([own, *(w for w in there if w["rank"] != 0)]), flush=True)


if __name__ == "__main__":
    main()
