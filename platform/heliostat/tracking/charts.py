"""Curves as inline SVG, in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from heliostat.tracking.comparison import Comparison
from heliostat.tracking.metrics import number

SERIES = 6
"""Colours in the page's style sheet; further runs repeat them dashed."""

_WIDTH, _HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 34
_POINTS = 400  # about what a screen shows in this width


def chart(comparison: Comparison, metric: str) -> str:
    """The curve of one metric over steps, all runs overlaid; gaps where values are not finite."""
    curves = [list(run.histories.get(metric, ())) for run in comparison.runs]
    finite = [(step, value) for curve in curves for step, value in curve if math.isfinite(value)]
    if not finite:
        return ""
    steps, values = [step for step, _ in finite], [value for _, value in finite]
    x_ticks, y_ticks = ticks(min(steps), max(steps), 5), ticks(min(values), max(values), 5)
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    y_low, y_high = min(y_ticks[0], *values), max(y_ticks[-1], *values)

    def x(step: float) -> float:
        return _LEFT + (step - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(metric)} by step">']
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<text class="axis" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 1}" text-anchor="end">step</text>')
    for index, (run, curve) in enumerate(zip(comparison.runs, curves, strict=True)):
        lines = [
            " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in thinned(piece)) for piece in _pieces(curve)
        ]
        if not lines:
            continue
        dashed = ' stroke-dasharray="6 4"' if index >= SERIES else ""
        parts.append(f'<g class="series s{index % SERIES}"{dashed}><title>{escape(run.name)}</title>')
        parts.extend(f'<polyline points="{line}"/>' for line in lines)
        if len(curve) < 25:
            dots = ((x(step), y(value)) for step, value in curve if math.isfinite(value))
            parts.extend(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.6"/>' for cx, cy in dots)
        parts.append("</g>")
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers (1, 2, 2.5 or 5 times a power of ten apart) that span ``low`` to ``high``."""
    if not high > low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = high / count - low / count  # not (high - low) / count, which overflows at the ends of the range
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= rough), 10 * power)
    return [round(index * step, 12) if step > 1e-9 else index * step for index in _between(low / step, high / step)]


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Few enough points to draw, with the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= _POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / _POINTS)
    kept = {0, len(points) - 1}
    for first in range(0, len(points), size):
        stretch = range(first, min(first + size, len(points)))
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(kept)]


def _between(low: float, high: float) -> range:
    return range(math.floor(low + 1e-9), math.ceil(high - 1e-9) + 1)


def _pieces(curve: Sequence[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    pieces: list[list[tuple[int, float]]] = [[]]
    for point in curve:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _short(step: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(step) >= size:
            return f"{step / size:g}{letter}"
    return f"{step:g}"
