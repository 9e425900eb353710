"""A comparison as one HTML file that needs nothing else: no network, no scripts, pictures inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from heliostat.tracking import costs
from heliostat.tracking.charts import TOLD_APART, chart, looks
from heliostat.tracking.comparison import Comparison, main_metric, main_metrics, ranking
from heliostat.tracking.conclusions import conclusions
from heliostat.tracking.display import duration, moment
from heliostat.tracking.grouping import Group
from heliostat.tracking.importance import LEAST, importance
from heliostat.tracking.metrics import number
from heliostat.tracking.page_pictures import picture_rows
from heliostat.tracking.page_tables import metric_table, parameter_table, swatch, wide_tables
from heliostat.tracking.parallel import importance_bars, parallel_coordinates
from heliostat.tracking.returns import NOTE, returns, unequal
from heliostat.tracking.sweeps import Sweep

SIDE_BY_SIDE = 8
"""Groups that stand as columns; more stand as rows."""
_LAST = "The value at each run's last step, never its best one"
_SELECTED = (
    "Of each run the step at which its validation metric was best. The validation value itself was chosen by looking "
    "and flatters; what other data gave at that step does not."
)


def render(
    comparison: Comparison,
    figures: Mapping[str, Sequence[tuple[str, bytes]]] | None = None,
    store: str = "",
    *,
    title: str | None = None,
    metric: str | None = None,
    sweep: Sweep | None = None,
) -> str:
    """The page's text.

    Args:
        comparison: what to show.
        figures: by run id: (path, content) of pictures, PNG, JPEG or SVG.
        store: the store's address as it may be shown.
        title: of the page; without it what is compared.
        metric: by which groups are ranked; without it :func:`main_metric` says.
        sweep: the comparison as a sweep, where it is one.
    """
    groups = comparison.groups
    if title is None:
        title = groups[0].label if len(groups) == 1 else f"{_count(groups)} compared"
    row = main_metric(comparison, metric)
    order = ranking(comparison, row) if len(groups) > SIDE_BY_SIDE else list(range(len(groups)))
    styles = looks(len(groups), order)
    sections = [
        _said(conclusions(comparison, row)),
        _results(comparison, order, styles, row.name if row else None),
        _curves(comparison, order, styles),
        _sweep(sweep) if sweep else "",
        _returns(comparison),
        _parameters(comparison, styles),
        _costs(comparison, order, styles),
        _figures(comparison, order, styles, figures or {}),
        _environment(comparison, styles),
    ]
    experiments = sorted({run.experiment for run in comparison.runs})
    cards = "".join(_card(styles[index], group) for index, group in enumerate(groups) if len(groups) <= TOLD_APART)
    return Template(_PAGE).substitute(
        title=escape(title),
        style=files("heliostat.tracking").joinpath("page.css").read_text(encoding="utf-8"),
        subtitle=escape(", ".join(experiments)),
        store=f"<span>{escape(store)}</span>" if store else "",
        cards=f'<ul class="cards">{cards}</ul>' if cards else "",
        sections="".join(sections),
    )


def _count(groups: Sequence[Group]) -> str:
    runs = sum(len(group.runs) for group in groups)
    return f"{runs} runs" if runs == len(groups) else f"{len(groups)} settings, {runs} runs"


def _card(style: str, group: Group) -> str:
    first = group.runs[0]
    status = " ".join(dict.fromkeys(run.status.lower() for run in group.runs))
    if len(group.runs) == 1:
        took = "" if first.duration is None else f"<span>{escape(duration(first.duration))}</span>"
        facts = f"<span>{escape(moment(first.start))}</span>{took}<code>{escape(first.id[:12])}</code>"
    else:
        what = f"seeds {', '.join(group.seeds)}" if group.by_seed else f"{len(group.runs)} runs"
        facts = f"<span>{escape(what)}</span><span>since {escape(moment(min(run.start for run in group.runs)))}</span>"
    return (
        f'<li class="card"><div class="name">{swatch(style)}<b>{escape(group.label)}</b></div>'
        f'<div class="facts"><span class="status {escape(status)}">{escape(status)}</span>{facts}</div></li>'
    )


def _section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def _said(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return _section("What can be said", f'<ul class="said">{items}</ul>') if items else ""


def _results(comparison: Comparison, order: Sequence[int], styles: Sequence[str], main: str | None) -> str:
    if not comparison.metrics:
        return _section("Final metrics", '<p class="note">No run has logged a metric.</p>')
    many = len(comparison.groups) > SIDE_BY_SIDE
    notes = [_LAST]
    if any(each and each.count > 1 for row in comparison.metrics for each in row.cells):
        notes.append("mean ± 95 % interval over the number of runs in small print")
    if any(row.baselines for row in comparison.metrics):
        notes.append("indented rows are references, measured the same way")
    if many:
        body = wide_tables(comparison, comparison.metrics, order, styles, main)
        notes.append(f"settings by {main}, the best first" if main else "settings in the order given")
    else:
        body = metric_table(comparison, comparison.metrics, styles)
    note = notes[0] + "".join(f"; {each}" for each in notes[1:]) + "."
    found = _section("Final metrics", body, note)
    if comparison.selected:
        body = (
            wide_tables(comparison, comparison.selected, order, styles, main)
            if many
            else metric_table(comparison, comparison.selected, styles)
        )
        found += _section("At the best validation step", body, _SELECTED)
    return found


def _curves(comparison: Comparison, order: Sequence[int], styles: Sequence[str]) -> str:
    drawn = [(name, chart(comparison, name, styles)) for name in main_metrics(comparison)]
    panels = "".join(f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>" for name, svg in drawn if svg)
    if not panels:
        return ""
    named = [index for index in order if styles[index] != "rest"]
    legend = "".join(f"<li>{swatch(styles[index])}{escape(comparison.groups[index].label)}</li>" for index in named)
    if len(named) < len(styles):
        legend += f"<li>{swatch('rest')}{len(styles) - len(named)} others</li>"
    notes = []
    if any(len(group.runs) > 1 for group in comparison.groups):
        notes.append("Mean over the runs of a group with the 95 % interval of that mean as a band; thin: single runs.")
    note = " ".join(notes)
    return _section("Curves", f'<ul class="legend">{legend}</ul><div class="panels">{panels}</div>', note)


def _sweep(sweep: Sweep) -> str:
    lines = parallel_coordinates(sweep)
    if not lines:
        return ""
    found = importance(sweep.parameters, sweep.results)
    note = f"One line a setting; the stronger its colour, the better its {sweep.metric}; the thick one is the best."
    body = f'<figure><figcaption>Parallel coordinates</figcaption><div class="scroll">{lines}</div></figure>'
    if found is None:
        body += f'<p class="note">Importance of parameters is told from {LEAST} settings on.</p>'
    else:
        worth = "" if found.explained > 0.3 else " That is little: do not read the bars."
        caption = (
            "Share of the variance that a random forest stops explaining when a parameter is shuffled, on settings "
            f"that it was not fitted to. It explains {max(0.0, found.explained):.0%} of the variance of "
            f"{found.settings} settings.{worth} Only the ranges that were searched count."
        )
        body += (
            f'<h3>Importance of parameters</h3><p class="note">{escape(caption)}</p>'
            f"<figure>{importance_bars(found)}</figure>"
        )
    return _section("Parameters and result", body, note)


def _returns(comparison: Comparison) -> str:
    found = returns(comparison)
    if not found:
        return ""
    rows = []
    for each in found:
        cells = [str(each.count)]
        for value in (each.middle, each.human):
            cells.append("–" if value is None else f"{number(value.value)} [{number(value.low)}, {number(value.high)}]")
        texts = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(each.label)}</th>{texts}</tr>')
    head = "".join(
        f'<th scope="col">{title}</th>' for title in ("", "returns", "interquartile mean", "human-normalised")
    )
    table = f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    told = "".join(f'<p class="note">{escape(sentence)}.</p>' for sentence in unequal(comparison))
    return _section("Returns over seeds", f'<div class="wide">{table}</div>{told}', NOTE)


def _parameters(comparison: Comparison, styles: Sequence[str]) -> str:
    if len(comparison.groups) == 1 or len(comparison.groups) > SIDE_BY_SIDE:  # there they stand beside the metrics
        return ""
    if not comparison.parameters:
        return _section("Parameters", '<p class="note">All parameters are the same.</p>')
    rows = [(row.name, row.values) for row in comparison.parameters]
    table = parameter_table(comparison, "parameter", rows, styles)
    return _section("Parameters that differ", table, "All others are the same, but for the seed.")


def _costs(comparison: Comparison, order: Sequence[int], styles: Sequence[str]) -> str:
    found = costs.rows(comparison.groups)
    if not found:
        return ""
    note = "Of one run, or the mean over the runs of a group; time includes pauses of a resumed run."
    if len(comparison.groups) <= SIDE_BY_SIDE:
        return _section("Cost", parameter_table(comparison, "", found, styles), note)
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in ("", *(title for title, _ in found)))
    body = "".join(
        f'<tr><th scope="row">{swatch(styles[index])}{escape(comparison.groups[index].label)}</th>'
        + "".join(f"<td>{escape(texts[index])}</td>" for _, texts in found)
        + "</tr>"
        for index in order
    )
    table = f'<table class="rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return (
        f"<section><details><summary><h2>Cost</h2><span>{note}</span></summary>"
        f'<div class="wide">{table}</div></details></section>'
    )


def _figures(
    comparison: Comparison,
    order: Sequence[int],
    styles: Sequence[str],
    figures: Mapping[str, Sequence[tuple[str, bytes]]],
) -> str:
    body = picture_rows(comparison, order, styles, figures)
    note = "Pictures of the same name side by side; of a group those of its first seed."
    return _section("Figures", body, note) if body else ""


def _environment(comparison: Comparison, styles: Sequence[str]) -> str:
    if not comparison.environment or len(comparison.groups) > SIDE_BY_SIDE:
        names = ", ".join(row.name for row in comparison.environment)
        return (
            f'<section><p class="note">Environments differ in {escape(names)}; --json has them.</p></section>'
            if names
            else ""
        )
    count = len(comparison.environment)
    table = parameter_table(comparison, "", [(row.name, row.values) for row in comparison.environment], styles)
    return (
        f"<section><details><summary><h2>Environments differ</h2><span>{count} of versions, hardware and code"
        f"</span></summary>{table}</details></section>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title · heliostat</title>
<style>
$style</style>
</head>
<body>
<main>
<header>
<div class="mark-name">heliostat</div>
<h1>$title</h1>
<p class="sub"><span>$subtitle</span>$store</p>
$cards
</header>
$sections
</main>
</body>
</html>
"""
