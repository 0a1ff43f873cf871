"""What applications take from PhysicsNeMo, handed on so that they import one package."""

from physicsnemo.distributed import DistributedManager as DistributedManager
