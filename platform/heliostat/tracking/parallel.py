"""A sweep as pictures: parallel coordinates, and bars of importance, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from heliostat.tracking.charts import ticks
from heliostat.tracking.importance import Importance
from heliostat.tracking.metrics import number
from heliostat.tracking.sweeps import Sweep

_HEIGHT, _TOP, _BOTTOM, _SIDE = 330, 46, 40, 70
_AXIS_WIDTH = 150
_DECADES = 1.5  # a parameter that spans more powers of ten is drawn on a logarithmic axis
_MOST_AXES = 9
_LABEL = 17  # characters that fit between two axes


@dataclass(frozen=True)
class _Axis:
    title: str
    marks: Sequence[tuple[float, str]]
    """Place, 0 at the bottom to 1 at the top, and text."""
    places: Sequence[float]
    """Of each setting."""


def parallel_coordinates(sweep: Sweep) -> str:
    """One line a setting, from its parameters to its result; the better the result, the stronger its colour."""
    kept = [index for index, value in enumerate(sweep.results) if math.isfinite(value)]
    if not kept:
        return ""
    names = list(sweep.parameters)[:_MOST_AXES]
    axes = [_axis(name, [sweep.parameters[name][index] for index in kept]) for name in names]
    results = [sweep.results[index] for index in kept]
    axes.append(_numeric(sweep.metric, results, [*results], logarithmic=False))
    width = 2 * _SIDE + _AXIS_WIDTH * (len(axes) - 1)
    down = _HEIGHT - _BOTTOM

    def x(position: int) -> float:
        return _SIDE + _AXIS_WIDTH * position

    def y(place: float) -> float:
        return down - place * (down - _TOP)

    title = f"parameters of {len(kept)} settings and their {sweep.metric}"
    parts = [
        f'<svg viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="{escape(title)}" class="parallel" '
        f'style="max-width:{round(1.15 * width)}px">'
    ]
    worst_first = sorted(range(len(kept)), key=lambda index: results[index], reverse=sweep.direction == "lower")
    for place, index in enumerate(worst_first):
        goodness = place / max(1, len(kept) - 1)
        points = " ".join(f"{x(position)},{y(axis.places[index]):.1f}" for position, axis in enumerate(axes))
        best = " best-line" if place == len(kept) - 1 else ""
        settings = ", ".join(f"{name}={sweep.parameters[name][kept[index]] or '-'}" for name in names)
        told = f"{sweep.labels[kept[index]]}: {sweep.metric} {number(results[index])}; {settings}"
        parts.append(
            f'<polyline class="setting{best}" style="--good:{100 * goodness:.0f}%" points="{points}">'
            f"<title>{escape(told)}</title></polyline>"
        )
    for position, axis in enumerate(axes):
        parts.append(f'<line class="axis-line" x1="{x(position)}" x2="{x(position)}" y1="{_TOP}" y2="{down}"/>')
        lines = _wrapped(axis.title)
        for row, line in enumerate(lines):
            above = _TOP - 14 - 13 * (len(lines) - 1 - row)
            parts.append(
                f'<text class="title" x="{x(position)}" y="{above}" text-anchor="middle">{escape(line)}</text>'
            )
        last = position == len(axes) - 1
        for mark, text in axis.marks:
            anchor, shift = ("start", 7) if last else ("end", -7)
            parts.append(
                f'<text class="halo" x="{x(position) + shift}" y="{y(mark) + 4:.1f}" '
                f'text-anchor="{anchor}">{escape(text)}</text>'
            )
    sign = "higher" if sweep.direction == "higher" else "lower"
    parts.append(
        f'<text class="axis" x="{x(len(axes) - 1)}" y="{_HEIGHT - 8}" text-anchor="middle">{sign} is better</text>'
    )
    return "".join(parts) + "</svg>"


def importance_bars(found: Importance) -> str:
    """One bar a parameter."""
    row, left, width = 28, 250, 620
    largest = max(0.01, *found.shares.values())
    height = row * len(found.shares) + 10
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="importance of parameters" class="bars">']
    for place, (name, share) in enumerate(found.shares.items()):
        y = 5 + place * row
        length = max(0.0, share) / largest * (width - left - 70)
        shown = name if len(name) <= 40 else f"…{name[-39:]}"
        parts.append(
            f'<text x="{left - 10}" y="{y + 17}" text-anchor="end">{escape(shown)}</text>'
            f'<rect class="bar" x="{left}" y="{y + 4}" width="{length + 1:.1f}" height="{row - 10}">'
            f"<title>{escape(name)}: {share:.3f}</title></rect>"
            f'<text x="{left + length + 8:.1f}" y="{y + 17}">{share:.2f}</text>'
        )
    return "".join(parts) + "</svg>"


def _axis(name: str, values: Sequence[str | None]) -> _Axis:
    known = [value for value in values if value is not None]
    try:
        numbers = [None if value is None else float(value) for value in values]
    except ValueError:
        return _categories(name, values)
    if not all(number is None or math.isfinite(number) for number in numbers):
        return _categories(name, values)
    found = [value for value in numbers if value is not None]
    if len(set(found)) <= 4 and len(known) == len(values):
        return _categories(name, [f"{value:g}" for value in found], key=float)
    positive = bool(found) and min(found) > 0
    return _numeric(name, numbers, found, positive and math.log10(max(found) / min(found)) > _DECADES)


def _categories(name: str, values: Sequence[str | None], key: type = str) -> _Axis:
    kinds = sorted({value for value in values if value is not None}, key=key)
    order: list[str | None] = [*([None] if None in values else []), *kinds]
    place = {kind: (index + 0.5) / len(order) for index, kind in enumerate(order)}
    marks = [(place[kind], "-" if kind is None else kind[:12]) for kind in order]
    return _Axis(name, marks if len(marks) <= 15 else marks[:: math.ceil(len(marks) / 15)], [place[v] for v in values])


def _numeric(name: str, numbers: Sequence[float | None], found: Sequence[float], logarithmic: bool) -> _Axis:
    """Absent values stand at the very bottom, below the scale."""
    missing = any(value is None for value in numbers)
    floor = 0.12 if missing else 0.0
    if logarithmic:
        powers = range(math.floor(math.log10(min(found))), math.ceil(math.log10(max(found))) + 1)
        scale = [10.0**power for power in powers]
        low, high = float(powers[0]), float(powers[-1])
        scaled = [None if value is None else math.log10(value) for value in numbers]
    else:
        scale = ticks(min(found), max(found), 4)
        low, high = scale[0], scale[-1]
        scaled = list(numbers)

    def place(value: float) -> float:
        return floor + (1 - floor) * (value - low) / (high - low)

    marks = [(place(math.log10(tick) if logarithmic else tick), number(tick)) for tick in scale]
    return _Axis(
        name,
        [*([(0.0, "-")] if missing else []), *marks],
        [0.0 if value is None else place(value) for value in scaled],
    )


def _wrapped(name: str) -> list[str]:
    """A name in at most two lines, its end kept: that tells parameters apart."""
    if len(name) <= _LABEL:
        return [name]
    head, dot, tail = name.rpartition(".")
    if not dot:
        head, dot, tail = name.rpartition("/")
    if len(tail) > _LABEL:
        tail = f"…{tail[-_LABEL + 1 :]}"
    first = head + dot
    return [f"…{first[-_LABEL + 1 :]}" if len(first) > _LABEL else first, tail] if first else [tail]
