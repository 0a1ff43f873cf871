"""What makes a diagnostic faster and its result another one: mixed precision, compilation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from distinf.errors import ConfigError

__all__ = ["compile_networks", "lower_precision"]


def lower_precision(precision: str | None, device: torch.device) -> AbstractContextManager[Any]:
    """Let autocast lower the precision of what it deems safe, during a block.

    Parameters
    ----------
    precision : str | None
        ``"float16"`` or ``"bfloat16"``; None: nothing is lowered.
    device : torch.device
        Where the model is.
    """
    if precision is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def compile_networks(model: Any, who: str) -> None:
    """Compile the networks of a model in place, at their first call.

    Earth2Studio's models keep their networks as submodules, and move coordinates and fields about
    around them: these are compiled, and what is around them is not.

    Parameters
    ----------
    model : Any
        The model, on its device.
    who : str
        Its section of the config, for errors.

    Raises
    ------
    ConfigError
        If it has no network.
    """
    networks = list(model.children()) if isinstance(model, torch.nn.Module) else []
    networks = [network for network in networks if any(True for _ in network.parameters())]
    if not networks:
        raise ConfigError(
            f"{who}.compile=true: {type(model).__name__} has no network to compile; leave it null"
        )
    for network in networks:
        network.compile()
