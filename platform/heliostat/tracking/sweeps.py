"""Many settings at once: what a sweep varied, and what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heliostat.tracking.comparison import Comparison, MetricRow, main_metric
from heliostat.tracking.metrics import Direction
from heliostat.tracking.run_record import RunRecord

LEAST = 5
"""Settings from which on lines between axes say more than a table."""
_METRIC_NAMES, _MODE_NAMES = ("sweep.metric", "heliostat.sweep.metric"), ("sweep.mode", "heliostat.sweep.mode")


@dataclass(frozen=True)
class Sweep:
    """Settings by what they varied and what they reached."""

    labels: Sequence[str]
    parameters: Mapping[str, Sequence[str | None]]
    """By name, the value in each setting."""
    metric: str
    direction: Direction
    results: Sequence[float]
    """Of each setting; NaN where it has none."""


def objective(parent: RunRecord | None) -> str | None:
    """The metric that a sweep was after, as its parent run tells it by a parameter or a tag."""
    return _told(parent, _METRIC_NAMES)


def as_sweep(comparison: Comparison, metric: str | None = None, parent: RunRecord | None = None) -> Sweep | None:
    """The comparison as a sweep; None of too few settings, of ones that differ in nothing, or without a metric of which
    one knows which way it is better.

    Raises:
        InputError: no run has the metric.
    """
    row = main_metric(comparison, metric)
    if row is None or len(comparison.groups) < LEAST or not comparison.parameters:
        return None
    better = _direction(row, parent)
    if better is None:
        return None
    return Sweep(
        labels=[group.label for group in comparison.groups],
        parameters={each.name: each.values for each in comparison.parameters},
        metric=row.name,
        direction=better,
        results=[math.nan if each is None else each.value for each in row.cells],
    )


def _direction(row: MetricRow, parent: RunRecord | None) -> Direction | None:
    mode = _told(parent, _MODE_NAMES) if objective(parent) == row.name else None
    told: Mapping[str | None, Direction] = {"max": "higher", "min": "lower"}
    return told.get(mode, row.direction)


def _told(parent: RunRecord | None, names: Sequence[str]) -> str | None:
    if parent is None:
        return None
    return next((found for name in names if (found := parent.parameters.get(name) or parent.tags.get(name))), None)
