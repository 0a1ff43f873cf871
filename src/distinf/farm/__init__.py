"""Which worker runs which task.

Promises: a worker holds at most two tasks; a lost worker's tasks run elsewhere; no task is lost or
counted twice. The dispatcher is a pure state machine that knows neither torch nor weather.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
