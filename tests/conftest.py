"""What all tests share."""

import os
import signal

# Before torch is imported: two threads on two busy cores take many times as long as one.
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

# A noisy machine is no error.
settings.register_profile("distinf", deadline=None)
settings.load_profile("distinf")

# A shell lets jobs in the background ignore it, and so all that these start.
signal.signal(signal.SIGINT, signal.default_int_handler)
