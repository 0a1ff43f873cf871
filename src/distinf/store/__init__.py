"""The Zarr result: its schema, its chunks, what is complete, where it lies.

Promises: a step is marked complete after its data is durable; an existing output is changed only
if the user said so, and by one run at a time; a resumed store has the bytes of one that was not
interrupted.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
