"""NaN and infinite values in results."""

from __future__ import annotations

import cmath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Rule", "Watched", "count_nonfinite", "is_finite"]


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
