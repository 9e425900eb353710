"""Tables of the comparison's page: groups as columns while they are few, as rows when they are many."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from heliostat.tracking.comparison import Comparison, MetricRow, rank
from heliostat.tracking.metrics import Cell, number

_METRICS_AT_ONCE = 6
"""Metrics beside one another where groups are rows; the rest follow in further tables."""
_MOST_PARAMETERS = 5


def swatch(style: str) -> str:
    """A group's colour."""
    return f'<i class="swatch {style}"></i>'


def metric_table(comparison: Comparison, rows: Sequence[MetricRow], styles: Sequence[str]) -> str:
    """Groups as columns."""
    doubtful = _doubtful(rows)
    body = []
    for row in rows:
        cells = "".join(_cell(each, doubtful) for each in row.cells)
        body.append(f'<tr><th scope="row">{escape(row.name)}{_arrow(row)}</th>{cells}</tr>')
        for what, values in row.baselines.items():
            cells = "".join(_cell(each, doubtful) for each in values)
            body.append(f'<tr class="baseline"><th scope="row">{escape(what)}</th>{cells}</tr>')
    table = f'<table class="numbers">{_head(comparison, "metric", styles)}<tbody>{"".join(body)}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def wide_tables(
    comparison: Comparison, rows: Sequence[MetricRow], order: Sequence[int], styles: Sequence[str], main: str | None
) -> str:
    """Groups as rows, with the parameters that differ; the main metric first, a few metrics at a time."""
    doubtful = _doubtful(rows)
    ordered = sorted(rows, key=lambda row: (row.name != main, rank(row.name)))
    tables = []
    beside = max(2, _METRICS_AT_ONCE - len(comparison.parameters[:_MOST_PARAMETERS]))
    starts = [0, *range(beside, len(ordered), _METRICS_AT_ONCE)]
    for first, last in zip(starts, [*starts[1:], len(ordered)], strict=True):
        part = ordered[first:last]
        parameters = comparison.parameters[:_MOST_PARAMETERS] if first == 0 else ()
        head = "".join(
            f'<th scope="col">{title}</th>'
            for title in (
                "setting",
                *(escape(row.name) for row in parameters),
                *(f"{escape(row.name)}{_arrow(row)}" for row in part),
            )
        )
        body = "".join(
            f'<tr><th scope="row">{swatch(styles[index])}{escape(comparison.groups[index].label)}</th>'
            + "".join(_text(row.values[index]) for row in parameters)
            + "".join(_cell(row.cells[index], doubtful) for row in part)
            + "</tr>"
            for index in order
        )
        table = f'<table class="numbers rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        if first == 0:
            tables.append(f'<div class="wide">{table}</div>')
        else:
            names = escape(", ".join(row.name for row in part))
            tables.append(f'<details><summary><span>{names}</span></summary><div class="wide">{table}</div></details>')
    left = len(comparison.parameters) - _MOST_PARAMETERS
    if left > 0:
        names = escape(", ".join(row.name for row in comparison.parameters[_MOST_PARAMETERS:]))
        tables.append(f'<p class="note">{left} more parameters differ; --json and --csv have them: {names}</p>')
    return "".join(tables)


def parameter_table(
    comparison: Comparison, label: str, rows: Sequence[tuple[str, Sequence[str | None]]], styles: Sequence[str]
) -> str:
    """Text, groups as columns."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_text, values))}</tr>' for name, values in rows
    )
    return f'<div class="wide"><table>{_head(comparison, label, styles)}<tbody>{body}</tbody></table></div>'


def _head(comparison: Comparison, label: str, styles: Sequence[str]) -> str:
    cells = "".join(
        f'<th scope="col">{swatch(style)}{escape(group.label)}</th>'
        for style, group in zip(styles, comparison.groups, strict=True)
    )
    return f'<thead><tr><th scope="col">{escape(label)}</th>{cells}</tr></thead>'


def _doubtful(rows: Sequence[MetricRow]) -> bool:
    """Whether any group has several runs, so that it is worth saying which have one alone."""
    return any(each is not None and each.count > 1 for row in rows for each in row.cells)


def _cell(cell: Cell | None, doubtful: bool) -> str:
    if cell is None:
        return '<td class="none">–</td>'
    text = escape(str(cell))
    if cell.count > 1:
        text += f'<span class="count" title="mean of {cell.count} runs">n={cell.count}</span>'
    if cell.best:
        return f'<td class="best"><b>{text}</b><span class="mark">best</span></td>'
    verdict = cell.verdict
    if verdict is not None and verdict.finding == "within noise":
        p = "" if verdict.p is None else f"p = {number(verdict.p)}"
        text += f'<span class="chip" title="{p}">within noise</span>'
    elif verdict is not None and verdict.finding == "unknown" and doubtful:
        text += '<span class="chip" title="one run has no noise to compare with">?</span>'
    return f"<td>{text}</td>"


def _text(value: str | None) -> str:
    return '<td class="none">–</td>' if value is None else f"<td>{escape(value)}</td>"


def _arrow(row: MetricRow) -> str:
    better = {"higher": "higher is better", "lower": "lower is better", None: ""}[row.direction]
    arrow = {"higher": "↑", "lower": "↓", None: ""}[row.direction]
    return f'<span class="arrow" title="{better}">{arrow}</span>' if arrow else ""
