"""Which parameters of a sweep matter: how much worse a model of the results predicts when one of them is shuffled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEAST = 10
"""Settings below which nothing is said: a model of fewer learns their noise."""
_TREES, _SHUFFLES, _FOLDS = 200, 20, 5


@dataclass(frozen=True)
class Importance:
    """What a sweep tells of its parameters."""

    shares: Mapping[str, float]
    """By parameter, the largest first: the variance of the results that the model stops explaining when the parameter
    is shuffled, as a share of all variance. Negative values are noise about 0."""
    explained: float
    """Share of the variance that the model predicts of settings it has not seen (R squared, cross-validated). Where it
    is small, so is the worth of ``shares``."""
    settings: int


def importance(parameters: Mapping[str, Sequence[str | None]], results: Sequence[float]) -> Importance | None:
    """Permutation importance (Breiman 2001) of a random forest, on settings that it was not fitted to.

    Only what the trials visited counts: a range that is narrow, or that a search soon left, looks unimportant; and two
    parameters that moved together share what they explain. Trees do not care about scales, so that a logarithm changes
    nothing.

    Args:
        parameters: by name, the value in each setting; text that is no number is a category, None a value of its own.
        results: of each setting; those that are not finite are left out.

    Returns:
        None of fewer than ``LEAST`` settings with results, or where nothing differs.
    """
    kept = [index for index, value in enumerate(results) if math.isfinite(value)]
    columns = {name: [values[index] for index in kept] for name, values in parameters.items()}
    columns = {name: values for name, values in columns.items() if len(set(values)) > 1}
    target = [results[index] for index in kept]
    if len(kept) < LEAST or not columns or len(set(target)) < 2:
        return None

    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import KFold

    x = np.array([_coded(values) for values in columns.values()], np.float64).T
    y = np.array(target, np.float64)
    lost, errors = np.zeros(len(columns)), 0.0
    for fit, held in KFold(_FOLDS, shuffle=True, random_state=0).split(x):
        forest = RandomForestRegressor(_TREES, random_state=0).fit(x[fit], y[fit])
        errors += float(((forest.predict(x[held]) - y[held]) ** 2).sum())
        found = permutation_importance(
            forest, x[held], y[held], scoring="neg_mean_squared_error", n_repeats=_SHUFFLES, random_state=0
        )
        lost += len(held) * found.importances_mean
    total = float(((y - y.mean()) ** 2).sum())
    shares = dict(sorted(zip(columns, (lost / total).tolist(), strict=True), key=lambda item: -item[1]))
    return Importance(shares, 1 - errors / total, len(kept))


def _coded(values: Sequence[str | None]) -> list[float]:
    """Numbers as they are; of anything else its place in the alphabet. A missing value stands below all others."""
    known = [value for value in values if value is not None]
    try:
        numbers = {value: float(value) for value in known}
    except ValueError:
        numbers = {value: float(place) for place, value in enumerate(sorted(set(known)))}
    below = min(numbers.values(), default=0.0) - 1.0
    return [below if value is None else numbers[value] for value in values]
