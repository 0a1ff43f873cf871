"""How a call and its tensors reach a worker and run there.

Promises: every call ends with a `Reply` or an error within its deadline, whatever the carrier; a
tensor's values are the same on both sides. Only this package imports `torch.distributed.rpc`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
