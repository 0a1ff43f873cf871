"""What the fork server imports for all workers of this machine.

No import may compute or start CUDA: neither survives a fork.
"""

import distinf.session.roles  # noqa: F401
from distinf.compiler import import_early

import_early(
    "physicsnemo.distributed",
    "torch_harmonics",
    "torch.fx.experimental.symbolic_shapes",  # torch-harmonics' first transform imports it
)
