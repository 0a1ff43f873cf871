"""An application written for the interface once proposed for Earth2Studio; see test_proposal.

Only the import differs from what it was written for.
"""

import sys
from collections import OrderedDict

import numpy as np
import torch

from distinf import DistributedInference, DistributedManager, local_concurrent_pipeline

FAULT = sys.argv[1] if len(sys.argv) > 1 else "none"
STEPS = 8


class Scaled:
    def __init__(self, factor, fault):
        if fault == "constructor":
            raise RuntimeError("no weights here")
        self.factor = factor
        self.fault = fault

    def forward(self, x, coords):
        if self.fault == "model" and coords["lead_time"][0] == np.timedelta64(24, "h"):
            raise RuntimeError("not a number at 24 h")
        return self.factor * x, coords

    def get_factor(self):
        return self.factor


def main():
    DistributedInference.initialize()
    manager = DistributedManager()
    if manager.rank == 0:
        infer = DistributedInference(Scaled, 2.0, fault=FAULT)
        assert infer.call_func("get_factor", rank=infer.remote_ranks[0]) == 2.0
        assert infer.call_func("get_factor") == [2.0] * len(infer.remote_ranks)
        written = {}

        def forecast():
            for step in range(STEPS):
                coords = OrderedDict(
                    time=np.array([np.datetime64("2023-06-01")]),
                    lead_time=np.array([np.timedelta64(6 * step, "h")]),
                    lat=np.arange(4),
                )
                infer(torch.full((1, 1, 4), float(step)), coords)
            infer.wait()

        def write():
            for y, coords in infer.results():
                if FAULT == "writer" and len(written) == 3:
                    raise OSError("no space left on device")
                written[int(coords["lead_time"][0] / np.timedelta64(6, "h"))] = float(y.max())

        local_concurrent_pipeline([forecast, write])
        assert written == {step: 2.0 * step for step in range(STEPS)}
        print(f"written {len(written)} of {STEPS} by {manager.world_size} ranks")
    DistributedInference.finalize()


if __name__ == "__main__":
    main()
