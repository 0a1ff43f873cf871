"""What a process frees at every step it does not take from the system again."""

import os
import subprocess
import sys

import pytest

# Pages of the system that 40 MB in pieces, taken and freed again and again, cost in the last round.
ROUNDS = """
import ctypes, resource, sys
from distinf.session.heap import keep_freed_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: one fault would take in 2 MB
if "keep" in sys.argv:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    before = faults()
    pieces = [b"x" * (4 * 2**20 + i) for i in range(10)]
    del pieces
print(faults() - before)
"""


@pytest.mark.parametrize(
    ("word", "environment", "stays"),
    [("keep", {}, True), ("", {}, False), ("keep", {"MALLOC_TRIM_THRESHOLD_": "0"}, False)],
)
def test_freed_memory_stays_unless_the_environment_says_otherwise(word, environment, stays):
    """Without it the pages come from the system each time, or the test would show nothing."""
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, word],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    pages = 10 * 4 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert (int(done.stdout) < pages / 10) is stays
