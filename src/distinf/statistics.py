"""Statistics over the members of an ensemble: their names, and their values for some points.

Also the names of the scores of a field against data.

Mean and standard deviation are Earth2Studio's. A NaN in any member gives NaN.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from distinf.options import Statistics

_DIGITS = ".15g"  # all that are sure to be the same in every float
# Scores of a field, in words.
SCORES = {"rmse": "root mean square error", "bias": "mean error"}


def scores_of(diagnostic: str) -> str:
    """Name under which the scores of a diagnostic's fields are stored and marked."""
    return f"{diagnostic}_scores"


def are_scores(diagnostic: str) -> bool:
    """Whether a diagnostic has such a name."""
    return diagnostic.endswith(scores_of(""))


def score_names(variable: str) -> list[str]:
    """Names in the store of a variable's scores, such as ``t2m_rmse``."""
    return [f"{variable}_{score}" for score in SCORES]


def score_attributes(variable: str, own: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """``units`` and ``long_name`` of a variable's scores, from its own."""
    units = {"units": own["units"]} if "units" in own else {}
    what = own.get("long_name", variable)
    return {
        name: {**units, "long_name": f"{words} of {what}"}
        for name, words in zip(score_names(variable), SCORES.values(), strict=True)
    }


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


def crps(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    r"""Continuous ranked probability score of an ensemble, by Earth2Studio.

    That of its empirical distribution function, which is
    :math:`\overline{|x_i - y|} - \overline{|x_i - x_j|} / 2` over all members i and j (Gneiting and
    Raftery 2007, eq. 21; https://doi.org/10.1198/016214506000001437).

    Parameters
    ----------
    members : np.ndarray
        Values [member, point], float32.
    truth : np.ndarray
        Values [point], float32.

    Returns
    -------
    np.ndarray
        Scores [point], float64, in the units of the values; NaN where one of them is NaN.
    """
    import torch
    from earth2studio.statistics import crps as score

    axes = OrderedDict(ensemble=np.arange(len(members)), point=np.arange(truth.size))
    x, y = (torch.from_numpy(values.astype(np.float64)) for values in (members, truth))
    found = score("ensemble")(x, axes, y, OrderedDict(point=axes["point"]))[0].numpy()
    unknown = np.isnan(members).any(axis=0) | np.isnan(truth)
    return np.where(unknown, np.nan, found)


def area_weights(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Weights of the points of a grid, float64: the cosine of the latitude, with the mean 1."""
    from earth2studio.statistics import lat_weight

    weights = np.asarray(lat_weight(lat.astype(np.float64)))
    return weights if lat.ndim > 1 else np.repeat(weights[:, np.newaxis], len(lon), axis=1)


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
        found[f"{variable}_q{100 * level:{_DIGITS}}"] = (f"{level:{_DIGITS}} quantile", {})
    for threshold in wanted.exceedance.get(variable, ()):
        words = f"share of members above {threshold:{_DIGITS}}"
        found[f"{variable}_above_{threshold:{_DIGITS}}"] = (words, {"units": "1"})
    return found
