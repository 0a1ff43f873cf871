"""How a call and its tensors travel: one contract, several carriers."""

from distinf.transport.contract import Call, Failure, Reply, Transport

__all__ = ["Call", "Failure", "Reply", "Transport"]
