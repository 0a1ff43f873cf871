"""How ranks start, find each other, agree on their settings, and stop.

Applications use `session`, a ``with`` block that all ranks run: rank 0 hands out tasks in it, and
the workers serve until rank 0's block ends. `current_session` returns the session that is open.

- Only this package asks which launcher started the ranks, and which rank a process is.
- A session opens with all ranks or not at all; an error names the rank that is missing or differs.
- Every rank ends, whatever fails; the process of a lost rank is killed where it can be reached.
- On one node no rank listens beyond loopback.
- A session that was closed can be opened again in the same process.
"""

import lazy_loader

# At once: the module of the same name would hide it.
from distinf.session.session import session as session

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
