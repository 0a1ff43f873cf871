"""End a process when its parent has ended."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

_POLL_SECONDS = 0.5


def when_parent_ends(parent: int, act: Callable[[], None]) -> None:
    """Call ``act`` from a thread soon after ``parent``, the parent process, ended."""

    def watch() -> None:
        # The system gives this process another parent at once, even while a zombie is left.
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        act()

    threading.Thread(target=watch, name="distinf-parent", daemon=True).start()
