"""Results do not depend on the thread that computes them."""

import subprocess
import sys

import pytest

from testing.application import environment

# As in a user's shell: no OMP_NUM_THREADS, so that MKL takes all cores unless it is told otherwise.
SCRIPT = """
from collections import OrderedDict

import numpy as np
import torch

from distinf import DistributedInference, Runtime, session
from distinf.models import RandomFields, WindDecomposition

names, time = ["u850", "v850"], np.array(["2023-06-01"], "M8[ns]")
source = RandomFields(16, 32)
x = torch.from_numpy(source(time, names).values)[:, None]
coords = OrderedDict(
    time=time, lead_time=np.array([0], "m8[ns]"), variable=np.array(names), **source.grid
)


class Diagnostic(WindDecomposition):
    def forward(self, x, coords):
        return self(x, coords)


with session(Runtime(nproc=1)):
    with DistributedInference(Diagnostic, levels=[850]) as infer:
        found = [infer.submit(x, coords).result()[0] for _ in range(3)]
    own = WindDecomposition(levels=[850])(x, coords)[0]
print([int((y != own).sum()) for y in found])
"""


@pytest.mark.slow
def test_the_first_call_gives_the_bits_of_the_others():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout.split("\n")[-2:] == ["[0, 0, 0]", ""], done.stdout + done.stderr
