"""Runs and comparisons as tables on a terminal."""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from heliostat.tracking.comparison import Comparison, ParameterRow
from heliostat.tracking.metrics import Cell, cell
from heliostat.tracking.records import RunRecord

_STATUS_STYLE = {"FINISHED": "green", "RUNNING": "cyan", "FAILED": "red", "KILLED": "yellow"}
_LABEL_WIDTH = 28
_COLUMN_WIDTH = 15  # three runs beside the labels fit 80 characters


def duration(seconds: float | None) -> str:
    """A length of time for people: "3 h 05 min", "4 min 12 s", "9.3 s"."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(seconds: float) -> str:
    """A time in this machine's time zone."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def print_runs(console: Console, runs: Sequence[RunRecord], metric: str | None = None) -> None:
    """One line a run. Without ``metric`` the column shows an evaluation of each run, a top-1 accuracy if it has one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("started", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column(Text(metric or "result"), justify="right", overflow="fold")
    for run in runs:
        name = metric or min((key for key in run.metrics if key.startswith("eval/")), key=_rank, default=None)
        result = ""
        if name is not None and (value := cell(run.metrics, name)) is not None:
            result = str(value) if metric else f"{name.removeprefix('eval/')} {value}"
        table.add_row(
            _folded(run.name, 20),
            Text(run.status.lower(), _STATUS_STYLE.get(run.status, "")),
            moment(run.start),
            duration(run.duration),
            Text(result),
        )
    console.print(table)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """What differs, then the final metrics; runs that do not fit side by side come in further tables."""
    columns = max(1, (console.width - _LABEL_WIDTH) // (_COLUMN_WIDTH + 2))
    for first in range(0, len(comparison.runs), columns):
        shown = slice(first, first + columns)
        runs = comparison.runs[shown]
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
        table.add_column("", max_width=_LABEL_WIDTH, overflow="fold")
        for run in runs:
            table.add_column(
                _folded(run.name, _COLUMN_WIDTH), justify="right", max_width=_COLUMN_WIDTH, overflow="fold"
            )
        status = [Text(run.status.lower(), _STATUS_STYLE.get(run.status, "")) for run in runs]
        table.add_row(Text("status"), *status)
        table.add_row(Text("took"), *(duration(run.duration) for run in runs))
        _add_rows(table, "parameters that differ", comparison.parameters, shown)
        if comparison.metrics:
            table.add_row(Text("\nfinal metrics", "bold"))
        for row in comparison.metrics:
            arrow = {"higher": " ↑", "lower": " ↓", None: ""}[row.direction]
            table.add_row(Text(row.name + arrow), *map(_marked, row.cells[shown]))
            for what, cells in row.baselines.items():
                table.add_row(Text(f"  {what}", "dim"), *(Text(str(each or "-"), "dim") for each in cells[shown]))
        _add_rows(table, "environments differ", comparison.environment, shown)
        console.print(table)
        console.print()
    shown_cells = [each for row in comparison.metrics for each in row.cells if each is not None]
    legend = "Values at the last step."
    if any(each.best for each in shown_cells):
        legend += " [bold green]*[/] best; ↑ higher is better, ↓ lower is better."
    if any(each.interval is not None for each in shown_cells):
        legend += " ±: the interval that the run logged."
    console.print(legend, style="dim")


def _add_rows(table: Table, title: str, rows: Sequence[ParameterRow], shown: slice) -> None:
    if rows:
        table.add_row(Text(f"\n{title}", "bold"))
    for row in rows:
        table.add_row(Text(row.name), *(Text("-" if value is None else value) for value in row.values[shown]))


def _rank(metric: str) -> tuple[bool, str]:
    return not metric.endswith("top1"), metric


def _folded(name: str, width: int) -> Text:
    """A run's name, broken at its hyphens where it is too long."""
    return Text("\n".join(textwrap.wrap(name, width)))


def _marked(value: Cell | None) -> Text:
    if value is None:
        return Text("-", "dim")
    return Text(f"* {value}", "bold green") if value.best else Text(str(value))
