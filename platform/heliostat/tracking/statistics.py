"""What few runs can tell: intervals over seeds, and whether a difference is within their noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

from heliostat.tracking.metrics import Direction

Finding: TypeAlias = Literal["best", "within noise", "worse", "unknown"]
"""How a group stands to the best one: ``unknown`` where either has a single run, whose noise nobody knows."""
LEVEL = 0.05
"""Chance of calling a difference real that is none, over all pairs of groups together."""
TEST = "Welch's t-test, two-sided; p-values corrected by Holm over all pairs of groups"


@dataclass(frozen=True)
class Verdict:
    """How one group stands to the best one."""

    finding: Finding
    p: float | None = None
    """Corrected p-value of the difference to the best group; None of the best itself and where it is unknown."""


@dataclass(frozen=True)
class Sample:
    """What a test needs of one group's values."""

    count: int
    mean: float
    variance: float
    """Of one value, with count - 1 degrees of freedom; NaN of a single value."""

    @staticmethod
    def of(values: Sequence[float]) -> Sample:
        """From finite or other values, at least one; a value that is not finite makes mean and variance NaN."""
        if not all(map(math.isfinite, values)):
            return Sample(len(values), math.nan, math.nan)
        variance = statistics.variance(values) if len(values) > 1 else math.nan
        return Sample(len(values), statistics.fmean(values), variance)

    def half_width(self, confidence: float = 0.95) -> float | None:
        """Half of Student's t interval of the mean; None of a single value, or where one is not finite."""
        if self.count < 2 or math.isnan(self.variance):
            return None
        from scipy.special import stdtrit

        quantile = float(stdtrit(self.count - 1, (1 + confidence) / 2))
        return quantile * math.sqrt(self.variance / self.count)


def welch(first: Sample, second: Sample) -> float | None:
    """p-value of the difference of two means whose variances may differ (Welch 1947), two-sided; None where either
    variance is unknown."""
    if math.isnan(first.variance) or math.isnan(second.variance):
        return None
    parts = first.variance / first.count, second.variance / second.count
    difference = abs(first.mean - second.mean)
    if not sum(parts):  # runs that do not differ at all, such as exact repetitions
        return 0.0 if difference else 1.0
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / (first.count - 1) + parts[1] ** 2 / (second.count - 1))
    from scipy.special import stdtr

    return 2 * float(stdtr(degrees, -difference / math.sqrt(sum(parts))))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected so that the chance of any false alarm among them is kept (Holm 1979), in the same order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected


def against_best(groups: Sequence[Sequence[float] | None], better: Direction) -> list[Verdict | None]:
    """How each group of values stands to the one with the best mean.

    The best is chosen by looking, so that the p-values are corrected over all pairs, not only over those with the best.
    Groups without values, or with values that are not finite, have no verdict; nor has any where all means are equal.
    """
    samples = {index: Sample.of(values) for index, values in enumerate(groups) if values}
    samples = {index: sample for index, sample in samples.items() if math.isfinite(sample.mean)}
    means = [sample.mean for sample in samples.values()]
    verdicts: list[Verdict | None] = [None] * len(groups)
    if len(set(means)) < 2:
        return verdicts
    target = max(means) if better == "higher" else min(means)
    best = next(index for index, sample in samples.items() if sample.mean == target)
    found = {pair: welch(samples[pair[0]], samples[pair[1]]) for pair in combinations(samples, 2)}
    tested = {pair: p for pair, p in found.items() if p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    for index, sample in samples.items():
        pair = (min(index, best), max(index, best))
        if sample.mean == target:
            verdicts[index] = Verdict("best")
        elif pair not in corrected:
            verdicts[index] = Verdict("unknown")
        else:
            p = corrected[pair]
            verdicts[index] = Verdict("worse" if p < LEVEL else "within noise", p)
    return verdicts
