"""A page about a run: maps and series from its store, its timeline, what limited it.

Promises: one file that needs no network; of the store it reads no more than it is told.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
