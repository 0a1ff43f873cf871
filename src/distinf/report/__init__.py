"""What happened when, and what it means.

Promises: a logging failure never stops the run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
