"""Tensors in nested containers, and NaN among their values."""

from __future__ import annotations

import cmath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "Rule",
    "Watched",
    "count_nonfinite",
    "is_finite",
    "map_leaves",
    "map_tensors",
    "owned",
    "tensor_bytes",
    "tensors_of",
]


def map_tensors(tree: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Change every tensor in nested tuples, lists and dicts, leaving all else as it is.

    Parameters
    ----------
    tree : Any
        Arguments or a result.
    change : Callable[[torch.Tensor], Any]
        Applied to each tensor.

    Returns
    -------
    Any
        The same structure; containers are new, and of the same type.
    """

    def change_tensor(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, torch.Tensor) else leaf

    return map_leaves(tree, change_tensor)


def map_leaves(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Change all that is in nested tuples, lists and dicts; as :func:`map_tensors`."""
    if isinstance(tree, tuple):
        items = [map_leaves(item, change) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    if isinstance(tree, list):
        return [map_leaves(item, change) for item in tree]
    if isinstance(tree, dict):
        return type(tree)((key, map_leaves(item, change)) for key, item in tree.items())
    return change(tree)


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """List the tensors in nested tuples, lists and dicts."""
    found: list[torch.Tensor] = []
    _collect(tree, found)
    return found


def _collect(tree: Any, found: list[torch.Tensor]) -> None:
    if isinstance(tree, torch.Tensor):
        found.append(tree)
    elif isinstance(tree, tuple | list):
        for item in tree:
            _collect(item, found)
    elif isinstance(tree, dict):
        for item in tree.values():
            _collect(item, found)


def tensor_bytes(tree: Any) -> int:
    """Bytes of all tensors in nested tuples, lists and dicts."""
    return sum(tensor.nbytes for tensor in tensors_of(tree))


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """Detach a tensor, in memory that holds nothing else: a view would take all of it along."""
    own = tensor.detach() if tensor.requires_grad else tensor
    whole = own.untyped_storage().nbytes() == own.nbytes
    return own if whole and own.is_contiguous() else own.contiguous().clone()


@dataclass(frozen=True)
class Rule:
    """What NaN or an infinite value in a result is.

    Parameters
    ----------
    mode : str
        ``"allow"``: nothing; ``"warn"``: something to be counted; ``"fail"``: an error.
    key : str, optional
        The key of the config that says so, for the error.
    """

    mode: str
    key: str = "runtime.nonfinite"


@dataclass(frozen=True)
class Watched:
    """What a model returns whose parts have rules of their own.

    Parameters
    ----------
    value : dict[str, Any]
        The result.
    rules : Mapping[str, Rule]
        Of some of its entries; the worker's own holds for the others.
    """

    value: dict[str, Any]
    rules: Mapping[str, Rule]

    def parts(self, rule: Rule) -> Iterator[tuple[str, Any, Rule]]:
        """Each entry and its rule."""
        for name, part in self.value.items():
            yield name, part, self.rules.get(name, rule)


def is_finite(x: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; False also where their sum only overflows."""
    if not (x.is_floating_point() or x.is_complex()):
        return True
    # Neither NaN nor infinity gets lost in a sum, which takes a tenth of the time.
    return cmath.isfinite(x.sum().item())


def count_nonfinite(x: torch.Tensor) -> int:
    """Count the values that are NaN or infinite."""
    return 0 if is_finite(x) else int(x.numel() - torch.isfinite(x).sum())
