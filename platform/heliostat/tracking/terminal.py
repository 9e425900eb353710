"""Runs and comparisons as tables on a terminal."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from heliostat.tracking.comparison import Comparison, MetricRow, ParameterRow, main_metric, ranking
from heliostat.tracking.conclusions import conclusions
from heliostat.tracking.costs import rows
from heliostat.tracking.display import duration, moment
from heliostat.tracking.grouping import Group
from heliostat.tracking.metrics import Cell, cell, number
from heliostat.tracking.returns import returns, unequal
from heliostat.tracking.run_record import RunRecord

_STATUS_STYLE = {"FINISHED": "green", "RUNNING": "cyan", "FAILED": "red", "KILLED": "yellow"}
_LABEL_WIDTH = 28
_CHILDREN = 10  # of a sweep that are shown
_SIDE_BY_SIDE = 8
_COLUMN_WIDTH = 15  # three runs beside the labels fit 80 characters


def print_runs(console: Console, runs: Sequence[RunRecord], metric: str | None = None) -> None:
    """One line a run, those that belong to another below it. Without ``metric`` the column shows an evaluation of each
    run, a top-1 accuracy or a return if it has one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("started", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column(Text(metric or "result"), justify="right", overflow="fold")
    here: set[str] = set()
    shown: Counter[str] = Counter()
    total = Counter(run.parent for run in runs if run.parent is not None)
    for run in runs:
        here.add(run.id)
        parent = run.parent if run.parent in here else None
        if parent is not None:
            shown[parent] += 1
            if shown[parent] > _CHILDREN:
                if shown[parent] == total[parent]:
                    table.add_row(Text(f"  … {total[parent] - _CHILDREN} more", "dim"))
                continue
        name = metric or min((key for key in run.metrics if key.startswith("eval/")), key=_rank, default=None)
        result = ""
        if name is not None and (value := cell(run.metrics, name)) is not None:
            result = str(value) if metric else f"{name.removeprefix('eval/')} {value}"
        elif metric is not None:
            result = run.parameters.get(metric, "")
        label = _folded(run.name, 20 if parent is None else 18)
        table.add_row(
            label if parent is None else Text("\n".join(f"  {line}" for line in label.plain.split("\n"))),
            Text(run.status.lower(), _STATUS_STYLE.get(run.status, "")),
            moment(run.start),
            duration(run.duration),
            Text(result),
        )
    console.print(table)


def print_groups(console: Console, comparison: Comparison, row: MetricRow | None, limit: int) -> None:
    """One line a group, the best first by one metric."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group", overflow="fold")
    table.add_column("runs", justify="right")
    table.add_column(Text(row.name if row else "metric"), justify="right", overflow="fold")
    for index in ranking(comparison, row)[:limit]:
        group = comparison.groups[index]
        total = len(group.runs) + len(group.left_out)
        count = str(total) if not group.left_out else f"{len(group.runs)} of {total}"
        table.add_row(Text(group.label), count, _marked(row.cells[index] if row else None))
    console.print(table)


def print_comparison(console: Console, comparison: Comparison, metric: str | None = None) -> None:
    """What differs, then the final metrics; groups that do not fit side by side come in further tables. Of many groups
    a line each."""
    row = main_metric(comparison, metric)
    if len(comparison.groups) > _SIDE_BY_SIDE:
        _print_lines(console, comparison, row)
    else:
        _print_columns(console, comparison)
    for each in returns(comparison):
        parts = [
            f"{what} {number(found.value)} [{number(found.low)}, {number(found.high)}]"
            for what, found in (("interquartile mean", each.middle), ("human-normalised", each.human))
            if found is not None
        ]
        if parts:
            console.print(Text(f"{each.label}: {each.metric} of {each.count}, {'; '.join(parts)}"), soft_wrap=True)
    for sentence in [*conclusions(comparison, row), *unequal(comparison)]:
        console.print(Text(sentence))
    console.print(Text(_legend(comparison), "dim"))


def _print_columns(console: Console, comparison: Comparison) -> None:
    columns = max(1, (console.width - _LABEL_WIDTH) // (_COLUMN_WIDTH + 2))
    costs = rows(comparison.groups)
    for first in range(0, len(comparison.groups), columns):
        shown = slice(first, first + columns)
        groups = comparison.groups[shown]
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
        table.add_column("", max_width=_LABEL_WIDTH, overflow="fold")
        for group in groups:
            table.add_column(
                _folded(group.label, _COLUMN_WIDTH), justify="right", max_width=_COLUMN_WIDTH, overflow="fold"
            )
        table.add_row(Text("status"), *map(_status, groups))
        if any(len(group.runs) > 1 for group in groups):
            table.add_row(Text("runs"), *(str(len(group.runs)) for group in groups))
        for title, texts in costs:
            table.add_row(Text(title), *(Text(text) for text in texts[shown]))
        _add_rows(table, "parameters that differ", comparison.parameters, shown)
        _add_metrics(table, "final metrics", comparison.metrics, shown)
        _add_metrics(table, "at the best validation step", comparison.selected, shown)
        _add_rows(table, "environments differ", comparison.environment, shown)
        console.print(table)
        console.print()


def _print_lines(console: Console, comparison: Comparison, row: MetricRow | None) -> None:
    """A line a group, the best first, with the parameters that differ as far as there is room."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("", max_width=_LABEL_WIDTH, overflow="fold")
    room = max(0, (console.width - 2 * _LABEL_WIDTH) // (_COLUMN_WIDTH + 2))
    parameters = comparison.parameters[:room]
    for each in parameters:
        table.add_column(_folded(each.name.replace(".", " "), _COLUMN_WIDTH), justify="right", max_width=_COLUMN_WIDTH)
    table.add_column(Text(row.name if row else ""), justify="right", overflow="fold")
    for index in ranking(comparison, row):
        values = [Text(value or "-") for value in (each.values[index] for each in parameters)]
        group = comparison.groups[index]
        count = f" ({len(group.runs)})" if len(group.runs) > 1 else ""
        table.add_row(Text(group.label + count), *values, _marked(row.cells[index] if row else None))
    console.print(table)
    left = [each.name for each in comparison.parameters[room:]]
    if left:
        console.print(Text(f"also different: {', '.join(left)}; the page, --csv and --json have them", "dim"))
    console.print()


def _legend(comparison: Comparison) -> str:
    cells = [each for row in comparison.metrics for each in row.cells if each is not None]
    parts = ["Values at the last step."]
    if any(each.best for each in cells):
        parts.append("* best, ↑ higher is better, ↓ lower is better.")
    if any(each.verdict is not None and each.verdict.finding == "within noise" for each in cells):
        parts.append("≈ within noise of the best.")
    if any(each.count > 1 for each in cells):
        parts.append("Of several runs: mean ± 95 % interval of the mean.")
    if any(each.interval is not None and each.count == 1 for each in cells):
        parts.append("± of one run: the interval that it logged.")
    return " ".join(parts)


def _status(group: Group) -> Text:
    found = list(dict.fromkeys(run.status for run in group.runs))
    return Text(", ".join(found).lower(), _STATUS_STYLE.get(found[0], "") if len(found) == 1 else "")


def _add_metrics(table: Table, title: str, metrics: Sequence[MetricRow], shown: slice) -> None:
    if metrics:
        table.add_row(Text(f"\n{title}", "bold"))
    for row in metrics:
        arrow = {"higher": " ↑", "lower": " ↓", None: ""}[row.direction]
        table.add_row(Text(row.name + arrow), *map(_marked, row.cells[shown]))
        for what, cells in row.baselines.items():
            table.add_row(Text(f"  {what}", "dim"), *(Text(str(each or "-"), "dim") for each in cells[shown]))


def _add_rows(table: Table, title: str, rows: Sequence[ParameterRow], shown: slice) -> None:
    if rows:
        table.add_row(Text(f"\n{title}", "bold"))
    for row in rows:
        table.add_row(Text(row.name), *(Text("-" if value is None else value) for value in row.values[shown]))


def _rank(metric: str) -> tuple[bool, str]:
    return not metric.endswith(("top1", "/return")), metric


def _folded(name: str, width: int) -> Text:
    """A run's name, broken at its hyphens where it is too long."""
    return Text("\n".join(textwrap.wrap(name, width)))


def _marked(value: Cell | None) -> Text:
    if value is None:
        return Text("-", "dim")
    if value.best:
        return Text(f"* {value}", "bold green")
    same = value.verdict is not None and value.verdict.finding == "within noise"
    return Text(f"≈ {value}") if same else Text(str(value))
