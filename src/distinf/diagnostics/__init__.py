"""Chains of diagnostics on a worker: which runs behind which, and what of their results is kept."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
