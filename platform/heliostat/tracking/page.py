"""A comparison as one HTML file that needs nothing else: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from heliostat.tracking.charts import SERIES, chart
from heliostat.tracking.comparison import Comparison, ParameterRow, main_metrics
from heliostat.tracking.metrics import Cell
from heliostat.tracking.records import RunRecord
from heliostat.tracking.terminal import duration, moment

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}


def render(
    comparison: Comparison, figures: Mapping[str, Sequence[tuple[str, bytes]]] | None = None, store: str = ""
) -> str:
    """The page's text.

    Args:
        comparison: what to show.
        figures: by run id: (path, content) of pictures, PNG, JPEG or SVG.
        store: the store's address as it may be shown.
    """
    runs = comparison.runs
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    sections = [
        _results(comparison),
        _curves(comparison),
        _parameters(comparison),
        _figures(comparison, figures or {}),
        _environment(comparison),
    ]
    experiments = sorted({run.experiment for run in runs})
    return _PAGE.substitute(
        title=escape(title),
        subtitle=escape(", ".join(experiments)),
        store=f"<span>{escape(store)}</span>" if store else "",
        cards="".join(map(_card, range(len(runs)), runs)),
        sections="".join(sections),
    )


def _card(index: int, run: RunRecord) -> str:
    took = "" if run.duration is None else f"<span>{escape(duration(run.duration))}</span>"
    return (
        f'<li class="card"><div class="name">{_swatch(index)}<b>{escape(run.name)}</b></div>'
        f'<div class="facts"><span class="status {escape(run.status.lower())}">{escape(run.status.lower())}</span>'
        f"<span>{escape(moment(run.start))}</span>{took}"
        f"<code>{escape(run.id[:12])}</code></div></li>"
    )


def _swatch(index: int) -> str:
    dashed = " dashed" if index >= SERIES else ""
    return f'<i class="swatch s{index % SERIES}{dashed}"></i>'


def _head(comparison: Comparison, label: str) -> str:
    cells = "".join(
        f'<th scope="col">{_swatch(index)}{escape(run.name)}</th>' for index, run in enumerate(comparison.runs)
    )
    return f'<thead><tr><th scope="col">{escape(label)}</th>{cells}</tr></thead>'


def _section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return '<td class="none">–</td>'
    text = escape(str(cell))
    return f'<td class="best"><b>{text}</b><span class="mark">best</span></td>' if cell.best else f"<td>{text}</td>"


def _results(comparison: Comparison) -> str:
    rows = []
    for row in comparison.metrics:
        better = {"higher": "higher is better", "lower": "lower is better", None: ""}[row.direction]
        arrow = {"higher": "↑", "lower": "↓", None: ""}[row.direction]
        sign = f'<span class="arrow" title="{better}">{arrow}</span>' if arrow else ""
        cells = "".join(map(_cell, row.cells))
        rows.append(f'<tr><th scope="row">{escape(row.name)}{sign}</th>{cells}</tr>')
        for what, values in row.baselines.items():
            cells = "".join(map(_cell, values))
            rows.append(f'<tr class="baseline"><th scope="row">{escape(what)}</th>{cells}</tr>')
    if not rows:
        return _section("Final metrics", '<p class="note">No run has logged a metric.</p>')
    note = "The value at each run's last step, never its best one. Indented rows are references, measured the same way."
    if not any(row.baselines for row in comparison.metrics):
        note = "The value at each run's last step, never its best one."
    table = f'<table class="numbers">{_head(comparison, "metric")}<tbody>{"".join(rows)}</tbody></table>'
    body = f'<div class="wide">{table}</div>'
    return _section("Final metrics", body, note)


def _curves(comparison: Comparison) -> str:
    drawn = [(name, chart(comparison, name)) for name in main_metrics(comparison)]
    panels = "".join(f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>" for name, svg in drawn if svg)
    return _section("Curves", f'<div class="panels">{panels}</div>') if panels else ""


def _table(comparison: Comparison, label: str, rows: Sequence[ParameterRow]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th>'
        + "".join('<td class="none">–</td>' if v is None else f"<td>{escape(v)}</td>" for v in row.values)
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>{_head(comparison, label)}<tbody>{body}</tbody></table></div>'


def _parameters(comparison: Comparison) -> str:
    if len(comparison.runs) == 1:
        return ""
    if not comparison.parameters:
        return _section("Parameters", '<p class="note">All parameters are the same.</p>')
    return _section(
        "Parameters that differ", _table(comparison, "parameter", comparison.parameters), "All others are the same."
    )


def _figures(comparison: Comparison, figures: Mapping[str, Sequence[tuple[str, bytes]]]) -> str:
    parts = []
    for index, run in enumerate(comparison.runs):
        pictures = []
        for path, content in figures.get(run.id, ()):
            kind = _TYPES["." + path.rpartition(".")[2].lower()]
            data = base64.b64encode(content).decode()
            name = path.rpartition("/")[2].rpartition(".")[0]
            pictures.append(
                f'<figure><img alt="{escape(name)}" src="data:{kind};base64,{data}">'
                f"<figcaption>{escape(name)}</figcaption></figure>"
            )
        if pictures:
            parts.append(f'<h3>{_swatch(index)}{escape(run.name)}</h3><div class="panels">{"".join(pictures)}</div>')
    return _section("Figures", "".join(parts)) if parts else ""


def _environment(comparison: Comparison) -> str:
    if not comparison.environment:
        return ""
    count = len(comparison.environment)
    table = _table(comparison, "", comparison.environment)
    return (
        f"<section><details><summary><h2>Environments differ</h2><span>{count} of versions, hardware and code"
        f"</span></summary>{table}</details></section>"
    )


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title · heliostat</title>
<style>
:root {
  --paper: #fbfaf7; --panel: #ffffff; --ink: #1d2329; --soft: #5d6770; --line: #e3e0d8; --best: #e7f3ea;
  --good: #14693a; --sun: #d98a00; --bad: #b3261e;
  --c0: #0072b2; --c1: #d55e00; --c2: #00855f; --c3: #b3508a; --c4: #3a9bd4; --c5: #a97700;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14181c; --panel: #1b2126; --ink: #e6e9eb; --soft: #98a4ae; --line: #2d353c; --best: #17342a;
    --good: #6fd39b; --sun: #f0b13c; --bad: #ff8a80;
    --c0: #58b4f0; --c1: #ff8f4d; --c2: #3fcf9f; --c3: #ea92c4; --c4: #a5dcff; --c5: #f0c04a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  -webkit-text-size-adjust: 100%; text-size-adjust: 100%;
}
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 56px; }
header { border-top: 4px solid var(--sun); padding-top: 18px; }
.mark-name { font-weight: 600; letter-spacing: .08em; text-transform: uppercase; font-size: 12px; color: var(--soft); }
h1 { font-size: 30px; line-height: 1.2; margin: 4px 0 2px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 20px 0 8px; overflow-wrap: anywhere; }
section { margin-top: 38px; }
.note, .sub { color: var(--soft); margin: 0 0 12px; }
.sub { display: flex; gap: 6px 18px; flex-wrap: wrap; overflow-wrap: anywhere; }
.cards {
  list-style: none; margin: 20px 0 0; padding: 0; display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(270px, 1fr));
}
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.name { overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: 2px 12px; color: var(--soft); font-size: 13px; margin-top: 4px; }
code { font: 12.5px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.status { font-weight: 600; }
.finished { color: var(--good); } .running { color: var(--c0); }
.failed { color: var(--bad); } .killed { color: var(--sun); }
.swatch {
  display: inline-block; width: 14px; height: 4px; border-radius: 2px; background: currentColor; margin-right: 8px;
  vertical-align: .25em; flex: none;
}
.swatch.dashed { background: linear-gradient(90deg, currentColor 38%, transparent 38% 62%, currentColor 62%); }
.s0 { color: var(--c0); } .s1 { color: var(--c1); } .s2 { color: var(--c2); }
.s3 { color: var(--c3); } .s4 { color: var(--c4); } .s5 { color: var(--c5); }
.wide { overflow-x: auto; background: var(--panel); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
thead th {
  font-size: 13px; font-weight: 600; color: var(--soft); overflow-wrap: anywhere; min-width: 110px;
  vertical-align: bottom;
}
tbody th {
  font-weight: 500; position: sticky; left: 0; background: var(--panel); overflow-wrap: anywhere; min-width: 150px;
}
td { overflow-wrap: anywhere; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; }
.numbers td { white-space: nowrap; }
.baseline th, .baseline td { color: var(--soft); font-size: 13.5px; padding-top: 4px; padding-bottom: 4px; }
.baseline th { padding-left: 32px; font-weight: 400; }
tr:has(+ .baseline) > *, .baseline:has(+ .baseline) > * { border-bottom-color: transparent; }
.best { background: var(--best); color: var(--good); }
.mark {
  font-size: 11px; margin-left: 8px; border: 1px solid currentColor; border-radius: 9px; padding: 0 6px;
  vertical-align: .08em;
}
.arrow { color: var(--soft); margin-left: 6px; }
.none { color: var(--soft); }
.panels { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); }
figure { margin: 0; background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: 6px; overflow-wrap: anywhere; }
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto 8px; background: #fff; border-radius: 4px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--line); }
.series polyline { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.series circle { fill: currentColor; }
.series:hover polyline { stroke-width: 3.5; }
summary { cursor: pointer; display: flex; align-items: baseline; gap: 12px; flex-wrap: wrap; margin-bottom: 12px; }
summary::before { content: "▸"; color: var(--soft); }
details[open] summary::before { content: "▾"; }
summary span { color: var(--soft); }
@media print {
  body { font-size: 10.5pt; background: #fff; }
  main { max-width: none; padding: 0; }
  section, figure, .card, tr { break-inside: avoid; }
  section:has(.panels), section:has(table) { break-inside: auto; }
  h2, h3, .note { break-after: avoid; }
  .wide { overflow: visible; }
  .best { font-weight: 700; }
  * { print-color-adjust: exact; }
  tbody th { position: static; }
}
</style>
</head>
<body>
<main>
<header>
<div class="mark-name">heliostat</div>
<h1>$title</h1>
<p class="sub"><span>$subtitle</span>$store</p>
<ul class="cards">$cards</ul>
</header>
$sections
</main>
</body>
</html>
""")
