"""Puts groups of runs side by side: what differs between them and what came out, whatever the format it is shown in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from heliostat.errors import InputError, Problem
from heliostat.tracking.conditions import hint
from heliostat.tracking.grouping import Group, differing, fold_seeds
from heliostat.tracking.metrics import (
    INTERVAL,
    Cell,
    Direction,
    cell,
    direction,
    is_validation,
    natural,
    of_test,
)
from heliostat.tracking.run_record import RunRecord
from heliostat.tracking.statistics import Sample, against_best

_NO_RESULTS = ("train/epoch", "train/learning_rate", "train/gradient_norm", "train/loss_scale")  # how, not how well
_SYSTEM = "system/"
_BASELINE = "baseline/"


@dataclass(frozen=True)
class MetricRow:
    """One metric over all groups."""

    name: str
    direction: Direction | None
    """Which way is better; None where the name does not tell, and then no group is marked."""
    cells: tuple[Cell | None, ...]
    """One per group; None where it has no such metric."""
    baselines: Mapping[str, tuple[Cell | None, ...]] = field(default_factory=dict)
    """By what was measured instead, such as "untrained" or "pixels": one per group."""


@dataclass(frozen=True)
class ParameterRow:
    """One parameter over all groups; None where a group has no such parameter."""

    name: str
    values: tuple[str | None, ...]


@dataclass(frozen=True)
class Comparison:
    """What differs between groups of runs and what came out."""

    groups: tuple[Group, ...]
    parameters: tuple[ParameterRow, ...]
    """Only those that differ."""
    metrics: tuple[MetricRow, ...]
    """At each run's last step."""
    selected: tuple[MetricRow, ...]
    """At the step at which a validation metric is best, where runs have one."""
    environment: tuple[ParameterRow, ...]
    """Only what differs."""

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All runs that count."""
        return tuple(run for group in self.groups for run in group.runs)


def compare(groups: Sequence[Group] | Sequence[RunRecord]) -> Comparison:
    """Put groups side by side: what differs between them, and their metrics with the best marked.

    Runs are put together by seeds first.
    """
    columns = tuple(each for each in groups if isinstance(each, Group)) or fold_seeds(
        [each for each in groups if isinstance(each, RunRecord)]
    )
    metrics = [[run.metrics for run in group.runs] for group in columns]
    selected = [[_at_best_validation(run) for run in group.runs] for group in columns]
    environments = [_shared(group) for group in columns]
    return Comparison(
        groups=columns,
        parameters=tuple(ParameterRow(*row) for row in differing(columns).items()),
        metrics=_rows(metrics),
        selected=_rows(selected),
        environment=_differing(environments),
    )


def main_metrics(comparison: Comparison, limit: int = 6) -> list[str]:
    """The metrics whose curves are worth a look: those with at least two points in some run; evaluation, then loss."""
    runs = comparison.runs
    names = (row.name for row in comparison.metrics)
    curves = [name for name in names if any(len(run.histories.get(name, ())) > 1 for run in runs)]
    return sorted(curves, key=rank)[:limit]


def main_metric(comparison: Comparison, given: str | None = None) -> MetricRow | None:
    """The metric by which groups are ranked: the one given, else the first evaluation whose name tells which way is
    better; None where there is none.

    Raises:
        InputError: no run has the one given.
    """
    rows = {row.name: row for row in comparison.metrics}
    if given is not None:
        if given not in rows:
            raise InputError(Problem(f"No run has a metric '{given}'.{hint(given, set(rows))}", "--metric"))
        return rows[given]
    judged = sorted((name for name, row in rows.items() if row.direction is not None), key=rank)
    return rows[judged[0]] if judged else None


def ranking(comparison: Comparison, row: MetricRow | None) -> list[int]:
    """Indices of groups, the best first; as they are where no metric tells."""
    indices = list(range(len(comparison.groups)))
    if row is None:
        return indices
    sign = 1 if row.direction == "lower" else -1

    def key(index: int) -> tuple[bool, float]:
        each = row.cells[index]
        known = each is not None and not math.isnan(each.value)
        return not known, sign * each.value if each is not None and known else 0.0

    return sorted(indices, key=key)


def rank(name: str) -> tuple[int, int, list[tuple[int, str]]]:
    """Orders metrics: evaluations before losses before the rest; among evaluations returns and accuracies first."""
    kind = 0 if name.startswith("eval/") else 1 if name.endswith("loss") else 2
    measure = name.rpartition("/")[2]
    first = 0 if measure == "return" else 1 if measure.endswith(("top1", "accuracy")) else 2
    return kind, first if kind == 0 else 0, natural(name)


def _rows(groups: Sequence[Sequence[Mapping[str, float]]]) -> tuple[MetricRow, ...]:
    names = {name for runs in groups for metrics in runs for name in metrics if _is_result(name, metrics)}
    return tuple(_metric_row(name, groups) for name in sorted(names, key=natural))


def _is_result(name: str, metrics: Mapping[str, object]) -> bool:
    if name.startswith((_SYSTEM, _BASELINE)) or name in _NO_RESULTS:
        return False
    if not name.endswith(INTERVAL):
        return True
    stem = name.removesuffix(INTERVAL)
    return not any(f"{stem}{measure}" in metrics for measure in ("", "_top1", "_accuracy"))


def _metric_row(name: str, groups: Sequence[Sequence[Mapping[str, float]]]) -> MetricRow:
    cells = [_folded(name, runs) for runs in groups]
    better = direction(name)
    if better is not None:
        values = [[metrics[name] for metrics in runs if name in metrics] for runs in groups]
        verdicts = against_best(values, better)
        cells = [
            each and replace(each, verdict=verdict, best=verdict is not None and verdict.finding == "best")
            for each, verdict in zip(cells, verdicts, strict=True)
        ]
    baselines = {}
    if name.startswith("eval/"):
        measure = name.removeprefix("eval/")
        pattern = re.compile(f"{_BASELINE}(.+)/{re.escape(measure)}")
        kinds = {match[1] for runs in groups for run in runs for key in run if (match := pattern.fullmatch(key))}
        baselines = {
            kind: tuple(_folded(f"{_BASELINE}{kind}/{measure}", runs) for runs in groups) for kind in sorted(kinds)
        }
    return MetricRow(name, better, tuple(cells), baselines)


def _folded(name: str, runs: Sequence[Mapping[str, float]]) -> Cell | None:
    """A metric of one run as it is, of several as their mean with an interval over them."""
    having = [metrics for metrics in runs if name in metrics]
    if not having:
        return None
    first = cell(having[0], name)
    if len(having) == 1 or first is None:
        return first
    sample = Sample.of([metrics[name] for metrics in having])
    return replace(first, value=sample.mean, interval=sample.half_width(), count=sample.count)


def _at_best_validation(run: RunRecord) -> dict[str, float]:
    """Of each validation metric its best value, and what the same measure gave at that step on other data.

    One may choose a step by validation, never by test data.
    """
    found: dict[str, float] = {}
    for name in sorted(name for name in run.histories if is_validation(name) and _is_result(name, run.histories)):
        better = direction(name)
        points = [point for point in run.histories[name] if math.isfinite(point[1])]
        if better is None or not points:
            continue
        step, value = (max if better == "higher" else min)(points, key=lambda point: point[1])
        found[name] = value
        measured = of_test(name)
        for other in {measured, f"eval/{measured}", f"test/{measured}"}:
            at = dict(run.histories.get(other, ()))
            if step in at:
                found[other] = at[step]
    return found


def _shared(group: Group) -> dict[str, str]:
    """What the runs of a group ran on; where they differ, all of it."""
    names = {name for run in group.runs for name in run.environment}
    return {
        name: " | ".join(dict.fromkeys(run.environment.get(name, "-") for run in group.runs)) for name in sorted(names)
    }


def _differing(mappings: Sequence[Mapping[str, str]]) -> tuple[ParameterRow, ...]:
    names = sorted({name for mapping in mappings for name in mapping})
    rows = (ParameterRow(name, tuple(mapping.get(name) for mapping in mappings)) for name in names)
    return tuple(row for row in rows if len(set(row.values)) > 1 or any(v and " | " in v for v in row.values))
