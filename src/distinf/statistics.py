"""Statistics over the members of an ensemble: their names, and their values for some points.

Mean and standard deviation are Earth2Studio's. A NaN in any member gives NaN.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from distinf.options import Statistics


def statistic_names(wanted: Statistics, variable: str) -> list[str]:
    """Names in the store of a variable's statistics, such as ``t2m_mean``, ``tp_above_10``."""
    return list(_described(wanted, variable))


def statistic_attributes(
    wanted: Statistics, variable: str, own: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """``units``, ``long_name`` and ``cell_methods`` of a variable's statistics, from its own."""
    units = {"units": own["units"]} if "units" in own else {}
    what = own.get("long_name", variable)
    return {
        name: {**units, **more, "long_name": f"{words} of {what}"}
        for name, (words, more) in _described(wanted, variable).items()
    }


def statistics(wanted: Statistics, variable: str, members: np.ndarray) -> dict[str, np.ndarray]:
    """Compute a variable's statistics.

    Parameters
    ----------
    wanted : Statistics
        Which ones.
    variable : str
        The variable.
    members : np.ndarray
        Its values [member, ...], float32.

    Returns
    -------
    dict[str, np.ndarray]
        Each statistic [...], float32, by its name: computed in double precision, but for the least
        and the largest value. A value depends on those of its own point only.
    """
    import torch
    from earth2studio.statistics import mean, std

    double = members.astype(np.float64)
    axes = [f"axis {i}" for i in range(1, members.ndim)]
    coords = OrderedDict(zip(["ensemble", *axes], map(np.arange, members.shape), strict=True))
    values: list[np.ndarray] = []
    for chosen, statistic in ((wanted.mean, mean), (wanted.std, std)):
        if chosen:
            values.append(statistic(["ensemble"])(torch.from_numpy(double), coords)[0].numpy())
    if wanted.min:
        values.append(members.min(axis=0))
    if wanted.max:
        values.append(members.max(axis=0))
    if wanted.quantiles:
        values += list(np.quantile(double, list(wanted.quantiles), axis=0))
    unknown = np.isnan(members).any(axis=0)
    for threshold in wanted.exceedance.get(variable, ()):
        share = (members > np.float32(threshold)).mean(axis=0)
        values.append(np.where(unknown, np.nan, share))
    names = statistic_names(wanted, variable)
    return {name: value.astype(np.float32) for name, value in zip(names, values, strict=True)}


def _described(wanted: Statistics, variable: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Names of a variable's statistics, each in words and with its attributes, in their order."""
    plain = {
        "mean": (wanted.mean, "mean", "mean"),
        "std": (wanted.std, "standard deviation", "standard_deviation"),
        "min": (wanted.min, "minimum", "minimum"),
        "max": (wanted.max, "maximum", "maximum"),
    }
    found = {
        f"{variable}_{name}": (words, {"cell_methods": f"realization: {method}"})
        for name, (chosen, words, method) in plain.items()
        if chosen
    }
    for level in wanted.quantiles:
        found[f"{variable}_q{100 * level:g}"] = (f"{level:g} quantile", {})
    for threshold in wanted.exceedance.get(variable, ()):
        words = f"share of members above {threshold:g}"
        found[f"{variable}_above_{threshold:g}"] = (words, {"units": "1"})
    return found
