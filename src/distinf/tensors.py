"""Tensors in nested containers, and NaN and infinite values in them."""

from __future__ import annotations

import cmath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch


def map_tensors(tree: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Apply ``change`` to each tensor in nested tuples, lists and dicts; return new containers."""

    def change_tensor(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, torch.Tensor) else leaf

    return map_leaves(tree, change_tensor)


def map_leaves(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` to each value in nested tuples, lists and dicts; return new containers."""
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
    if isinstance(tree, torch.Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree
    if not isinstance(tree, dict | tuple | list):
        return []
    return [tensor for item in items for tensor in tensors_of(item)]


def tensor_bytes(tree: Any) -> int:
    """Return the size of all tensors in nested tuples, lists and dicts, in bytes."""
    return sum(tensor.nbytes for tensor in tensors_of(tree))


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """Detach a tensor; copy it if its storage, all of which would be sent, is larger."""
    own = tensor.detach() if tensor.requires_grad else tensor
    whole = own.untyped_storage().nbytes() == own.nbytes
    return own if whole and own.is_contiguous() else own.contiguous().clone()


@dataclass(frozen=True)
class Rule:
    """The rule for NaN and infinite values in a result.

    ``mode`` is ``"allow"``, ``"warn"`` (they are counted) or ``"fail"`` (an error of the model that
    names ``key``).
    """

    mode: str
    key: str = "runtime.nonfinite"


@dataclass(frozen=True)
class Watched:
    """A result with rules for some of its entries; the worker's rule applies to the others."""

    value: dict[str, Any]
    rules: Mapping[str, Rule]

    def entries(self, rule: Rule) -> Iterator[tuple[str, Any, Rule]]:
        """Yield each entry and its rule."""
        for name, entry in self.value.items():
            yield name, entry, self.rules.get(name, rule)


Found = list[tuple[Rule, torch.Tensor]]


def without_rules(result: Any, rule: Rule) -> tuple[Any, Found]:
    """Return the value of a result, which may be `Watched`, and its tensors with their rules."""
    if not isinstance(result, Watched):
        return result, [(rule, tensor) for tensor in tensors_of(result)]
    entries = result.entries(rule)
    return result.value, [(own, tensor) for _, x, own in entries for tensor in tensors_of(x)]


def count_nonfinite(found: Found) -> int:
    """Count NaN and infinite values, except where a rule allows them.

    Raises `FloatingPointError` if there is one and the rule's mode is ``"fail"``.
    """
    counts: dict[Rule, int] = {}
    for rule, tensor in found:
        if rule.mode != "allow" and not is_finite(tensor):
            count = int(tensor.numel() - torch.isfinite(tensor).sum())
            counts[rule] = counts.get(rule, 0) + count
    for rule, count in counts.items():
        if count and rule.mode == "fail":
            raise FloatingPointError(
                f"{count} values of the result are NaN or infinite ({rule.key}=fail)"
            )
    return sum(counts.values())


def is_finite(x: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; False also if only their sum overflows."""
    if not (x.is_floating_point() or x.is_complex()):
        return True
    # NaN and infinity remain in the sum, which takes a tenth of the time of a test of each value.
    return cmath.isfinite(x.sum().item())
