"""Earth2Studio's models and data sources by name.

Promises: what cannot be loaded ends with one line that names the key, before any model loads.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
