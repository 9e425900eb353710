"""Comparisons as data: JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from heliostat.tracking.comparison import Comparison, MetricRow
from heliostat.tracking.costs import cost
from heliostat.tracking.importance import importance
from heliostat.tracking.metrics import Cell
from heliostat.tracking.returns import returns
from heliostat.tracking.run_record import summary
from heliostat.tracking.statistics import TEST
from heliostat.tracking.sweeps import Sweep


def to_json(comparison: Comparison, sweep: Sweep | None = None) -> dict[str, Any]:
    """The comparison as JSON; numbers that JSON has not (NaN, infinities) as text. Lists follow ``groups``."""
    found = importance(sweep.parameters, sweep.results) if sweep else None
    return {
        "groups": [
            {
                "label": group.label,
                "runs": [run.id for run in group.runs],
                "seeds": list(group.seeds),
                "left_out": [run.id for run in group.left_out],
                "notes": list(group.notes),
                "interval_over": group.over if len(group.runs) > 1 else None,
                "cost": _cost(comparison, index),
            }
            for index, group in enumerate(comparison.groups)
        ],
        "runs": [summary(run) for group in comparison.groups for run in (*group.runs, *group.left_out)],
        "parameters": {row.name: list(row.values) for row in comparison.parameters},
        "test": TEST,
        "metrics": _rows(comparison.metrics),
        "at_best_validation": _rows(comparison.selected),
        "returns": [
            {
                "label": each.label,
                "metric": each.metric,
                "count": each.count,
                "games": each.games,
                "interquartile_mean": _estimate(each.middle),
                "human_normalized": _estimate(each.human),
            }
            for each in returns(comparison)
        ],
        "sweep": sweep
        and {
            "metric": sweep.metric,
            "better": sweep.direction,
            "importance": found and {"shares": dict(found.shares), "explained": found.explained, "of": found.settings},
        },
        "environment": {row.name: list(row.values) for row in comparison.environment},
    }


def to_csv(comparison: Comparison) -> str:
    """One line a group: label, runs, the parameters that differ, and each metric with its interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = [name for row in comparison.metrics for name in (row.name, f"{row.name} interval")]
    writer.writerow(["label", "runs", *(row.name for row in comparison.parameters), *metrics])
    for index, group in enumerate(comparison.groups):
        line: list[Any] = [group.label, len(group.runs), *(row.values[index] for row in comparison.parameters)]
        for row in comparison.metrics:
            each = row.cells[index]
            line += [None, None] if each is None else [each.value, each.interval]
        writer.writerow(line)
    return text.getvalue()


def _rows(rows: Sequence[MetricRow]) -> dict[str, Any]:
    return {
        row.name: {
            "better": row.direction,
            "groups": [_cell(each) for each in row.cells],
            "baselines": {what: [_cell(each) for each in cells] for what, cells in row.baselines.items()},
        }
        for row in rows
    }


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    verdict = cell.verdict
    return {
        "value": _finite(cell.value),
        "interval": _finite(cell.interval),
        "n": cell.count,
        "verdict": verdict and verdict.finding,
        "p": verdict and _finite(verdict.p),
    }


def _cost(comparison: Comparison, index: int) -> dict[str, Any]:
    each = cost(comparison.groups[index])
    return {
        "seconds": each.seconds,
        "throughput": each.throughput and {each.throughput[0]: each.throughput[1]},
        "cpu_hours": each.cpu_hours,
        "gpu_hours": each.gpu_hours,
        "watt_hours": each.watt_hours,
    }


def _estimate(found: Any) -> dict[str, float] | None:
    return found and {"value": found.value, "low": found.low, "high": found.high}


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
