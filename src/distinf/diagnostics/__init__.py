"""Chains of diagnostics on a worker: which runs after which, and what is stored of their results.

Promises: the result of a task does not depend on the worker, and only what is stored is sent back.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
