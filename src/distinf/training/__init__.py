"""Training a diagnostic on all ranks of a session, from stores of earlier runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
