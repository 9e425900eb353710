"""Curves as inline SVG, in the page's own colours."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from html import escape

from heliostat.tracking.comparison import Comparison
from heliostat.tracking.curves import Curve, curve
from heliostat.tracking.metrics import number
from heliostat.tracking.run_record import History

SERIES = 6
"""Colours in the page's style sheet; the next as many groups repeat them dashed."""
TOLD_APART = 2 * SERIES
"""Groups that colours and dashes tell apart; of more, only the best ``SERIES`` have a colour."""

_WIDTH, _HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 34
_POINTS = 400  # about what a screen shows in this width
_FEW = 6  # runs of a group that are drawn one by one behind their mean


def looks(count: int, order: Sequence[int]) -> list[str]:
    """The style-sheet classes of each of ``count`` groups; ``order``: their indices, the best first."""
    if count <= TOLD_APART:
        return [f"s{index % SERIES}" + (" dashed" if index >= SERIES else "") for index in range(count)]
    best = {index: f"s{place}" for place, index in enumerate(order[:SERIES])}
    return [best.get(index, "rest") for index in range(count)]


def chart(comparison: Comparison, metric: str, styles: Sequence[str] = ()) -> str:
    """The curve of one metric over steps, all groups overlaid, with bands where a group has several runs; gaps where
    values are not finite. Empty where there is nothing to draw."""
    styles = styles or looks(len(comparison.groups), range(len(comparison.groups)))
    curves = [curve(group, metric) for group in comparison.groups]
    finite = [
        point for each in curves if each for member in each.members for point in member if math.isfinite(point[1])
    ]
    if not finite:
        return ""
    steps, values = [step for step, _ in finite], [value for _, value in finite]
    x_ticks, y_ticks = ticks(min(steps), max(steps), 5), ticks(min(values), max(values), 5)
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    y_low, y_high = min(y_ticks[0], *values), max(y_ticks[-1], *values)

    def x(step: float) -> float:
        return _LEFT + (step - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        # Bands of few seeds are wide; what lies outside the frame is cut off by the clip.
        inside = min(max(value, 2 * y_low - y_high), 2 * y_high - y_low)
        return _HEIGHT - _BOTTOM - (inside - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    def places(points: History) -> str:
        return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)

    name = escape(metric)
    clip = f"clip-{zlib.crc32(metric.encode()):x}"
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name} by step">',
        f'<clipPath id="{clip}"><rect x="{_LEFT}" y="{_TOP - 4}" width="{_WIDTH - _LEFT - _RIGHT + 4}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM + 8}"/></clipPath>',
    ]
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{short(tick)}</text>')
    parts.append(
        f'<text class="axis" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 1}" text-anchor="end">{_axis(comparison)}</text>'
    )
    parts.append(f'<g clip-path="url(#{clip})">')
    drawn = [(style, group, each) for style, group, each in zip(styles, comparison.groups, curves, strict=True) if each]
    for style, group, each in sorted(drawn, key=lambda item: item[0] != "rest"):  # colours above grey
        count = len(group.runs)
        title = escape(group.label) + (f", mean of {count} {group.over}" if count > 1 else "")
        parts.append(f'<g class="series {style}"><title>{title}</title>')
        parts += [f'<polygon class="band" points="{places(band)}"/>' for band in _bands(each)]
        if 1 < len(each.members) <= _FEW and style != "rest":
            parts += [
                f'<polyline class="one" points="{places(thinned(piece))}"/>'
                for member in each.members
                for piece in _pieces(member)
            ]
        parts += [f'<polyline points="{places(thinned(piece))}"/>' for piece in _pieces(each.mean)]
        if len(each.mean) < 25 and style != "rest":
            dots = ((x(step), y(value)) for step, value in each.mean if math.isfinite(value))
            parts += [f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.6"/>' for cx, cy in dots]
        parts.append("</g>")
    return "".join(parts) + "</g></svg>"


def _axis(comparison: Comparison) -> str:
    """What a step is: of agents one of their environment."""
    played = ["environment.type" in run.parameters for run in comparison.runs]
    return "environment steps" if played and all(played) else "step"


def _bands(each: Curve) -> list[History]:
    """The outlines of the interval: along its upper end and back along the lower, a piece for each stretch without
    gaps."""
    outlines = []
    for high, low in zip(_pieces(each.high), _pieces(each.low), strict=True):
        kept = range(0, len(high), max(1, math.ceil(len(high) / _POINTS)))
        indices = [*kept, len(high) - 1]
        outlines.append([high[index] for index in indices] + [low[index] for index in reversed(indices)])
    return [outline for outline in outlines if len(outline) > 3]


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


def _pieces(curve: History) -> list[list[tuple[int, float]]]:
    pieces: list[list[tuple[int, float]]] = [[]]
    for point in curve:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def short(step: float) -> str:
    """A large number in few letters: 20k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(step) >= size:
            return f"{step / size:g}{letter}"
    return f"{step:g}"
