"""How ranks start, find each other, agree on their settings, and stop.

Promises: every rank ends, whatever fails; on one node no rank listens beyond loopback. Nothing
outside this package asks which launcher started the run.
"""

import lazy_loader

# At once: the module of the same name would hide it.
from distinf.session.session import session as session

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
