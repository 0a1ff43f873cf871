"""Multi-GPU diagnostic inference for AI weather forecasts.

One GPU runs the forecast, all others run diagnostics on the steps it produces::

    from distinf import DistributedInference, session

    with session() as rank:
        if rank == 0:
            with DistributedInference(MyDiagnostic, "weights.pt") as infer:
                for y, y_coords in infer.starmap(rollout):
                    ...
"""

import lazy_loader

# At once: the package of the same name would hide it.
from distinf.session import session as session

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
