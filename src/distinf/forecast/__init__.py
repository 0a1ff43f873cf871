"""The prognostic: from initial conditions to a sequence of states.

Promises: the same states for the same seed, also after a restart from a saved state.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
