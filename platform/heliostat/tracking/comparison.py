"""Puts runs side by side: what differs between them and what came out, whatever the format it is shown in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from heliostat.tracking.metrics import INTERVAL, Cell, Direction, cell, direction, interval_name, natural
from heliostat.tracking.records import RunRecord, summary

_NO_RESULTS = ("train/epoch", "train/learning_rate", "train/gradient_norm", "train/loss_scale")  # how, not how well
_SYSTEM = "system/"
_BASELINE = "baseline/"


@dataclass(frozen=True)
class MetricRow:
    """One metric over all runs."""

    name: str
    direction: Direction | None
    """Which way is better; None where the name does not tell, and then no run is marked."""
    cells: tuple[Cell | None, ...]
    """One per run; None where the run has no such metric."""
    baselines: Mapping[str, tuple[Cell | None, ...]] = field(default_factory=dict)
    """By what was measured instead, such as "untrained" or "pixels": one per run."""


@dataclass(frozen=True)
class ParameterRow:
    """One parameter over all runs; None where a run has no such parameter."""

    name: str
    values: tuple[str | None, ...]


@dataclass(frozen=True)
class Comparison:
    """What differs between runs and what came out."""

    runs: tuple[RunRecord, ...]
    parameters: tuple[ParameterRow, ...]
    """Only those that differ."""
    metrics: tuple[MetricRow, ...]
    environment: tuple[ParameterRow, ...]
    """Only what differs."""


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Put runs side by side: what differs between them, and their final metrics with the best marked."""
    runs = tuple(records)
    names = sorted({name for run in runs for name in run.metrics if _is_result(name, run.metrics)}, key=natural)
    return Comparison(
        runs=runs,
        parameters=_differing([run.parameters for run in runs]),
        metrics=tuple(_metric_row(name, runs) for name in names),
        environment=_differing([run.environment for run in runs]),
    )


def main_metrics(comparison: Comparison, limit: int = 6) -> list[str]:
    """The metrics whose curves are worth a look: those with at least two points in some run; evaluation, then loss."""

    def rank(name: str) -> tuple[int, str]:
        if name.startswith("eval/"):
            return 0, name
        return (1, name) if name.endswith("loss") else (2, name)

    names = (row.name for row in comparison.metrics)
    curves = [name for name in names if any(len(run.histories.get(name, ())) > 1 for run in comparison.runs)]
    return sorted(curves, key=rank)[:limit]


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON; numbers that JSON has not (NaN, infinities) as text."""

    def finite(value: float | None) -> float | str | None:
        return value if value is None or math.isfinite(value) else str(value)

    def number_of(cell: Cell | None) -> dict[str, Any] | None:
        if cell is None:
            return None
        return {"value": finite(cell.value), "interval": finite(cell.interval), "best": cell.best}

    return {
        "runs": [summary(run) for run in comparison.runs],
        "parameters": {row.name: list(row.values) for row in comparison.parameters},
        "metrics": {
            row.name: {
                "better": row.direction,
                "runs": [number_of(each) for each in row.cells],
                "baselines": {what: [number_of(each) for each in cells] for what, cells in row.baselines.items()},
            }
            for row in comparison.metrics
        },
        "environment": {row.name: list(row.values) for row in comparison.environment},
    }


def _is_result(name: str, metrics: Mapping[str, float]) -> bool:
    if name.startswith((_SYSTEM, _BASELINE)) or name in _NO_RESULTS:
        return False
    return not any(interval_name(other) == name for other in metrics) and not (
        name.endswith(INTERVAL) and name.removesuffix(INTERVAL) in metrics
    )


def _metric_row(name: str, runs: Sequence[RunRecord]) -> MetricRow:
    cells = [cell(run.metrics, name) for run in runs]
    better = direction(name)
    values = [each.value for each in cells if each is not None and math.isfinite(each.value)]
    if better is not None and len(set(values)) > 1:
        best = max(values) if better == "higher" else min(values)
        cells = [each and replace(each, best=each.value == best) for each in cells]
    baselines = {}
    if name.startswith("eval/"):
        measure = name.removeprefix("eval/")
        pattern = re.compile(f"{_BASELINE}(.+)/{re.escape(measure)}")
        kinds = {match[1] for run in runs for key in run.metrics if (match := pattern.fullmatch(key))}
        baselines = {
            kind: tuple(cell(run.metrics, f"{_BASELINE}{kind}/{measure}") for run in runs) for kind in sorted(kinds)
        }
    return MetricRow(name, better, tuple(cells), baselines)


def _differing(mappings: Sequence[Mapping[str, str]]) -> tuple[ParameterRow, ...]:
    names = sorted({name for mapping in mappings for name in mapping})
    rows = (ParameterRow(name, tuple(mapping.get(name) for mapping in mappings)) for name in names)
    return tuple(row for row in rows if len(set(row.values)) > 1)
