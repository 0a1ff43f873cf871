"""What applications take from PhysicsNeMo, handed on so that they import one package."""

from distinf.compiler import delayed_compiler

with delayed_compiler():
    from physicsnemo.distributed import DistributedManager as DistributedManager
