"""One model on every worker, called like an executor of `concurrent.futures`.

Promises: a task's arguments may be changed as soon as `submit` returns; results are those of one
process; the first error reaches whoever waits.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
