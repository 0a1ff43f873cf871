"""Two sessions, one after the other, with another environment and another number of ranks."""

from __future__ import annotations

import os

from common import report

from distinf import DistributedInference, session


class Told:
    def forward(self, _):
        return os.environ.get("COLOUR"), os.getpid()


if __name__ == "__main__":
    seen = []
    for nproc, colour in ((3, "red"), (4, None)):
        os.environ.pop("COLOUR", None)
        if colour is not None:
            os.environ["COLOUR"] = colour
        with session(nproc=nproc) as rank:
            if rank == 0:
                with DistributedInference(Told) as infer:
                    told = list(infer.map(range(20)))
                seen.append(told)
                report(f"colours of {nproc} ranks", sorted({str(colour) for colour, _ in told}))
                report(f"workers of {nproc} ranks", len({pid for _, pid in told}))
    first, second = ({pid for _, pid in told} for told in seen)
    report("the same processes", sorted(first & second))
    report("interface", os.environ.get("TP_SOCKET_IFNAME"))
