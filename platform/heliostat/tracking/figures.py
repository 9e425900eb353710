"""Pictures: curves of several runs, what one run's representation is worth beside the baselines, and what its network
does with single images."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from heliostat.tracking.comparison import Comparison, main_metric, main_metrics, ranking
from heliostat.tracking.curves import Curve, curve
from heliostat.tracking.metrics import cell

# Okabe and Ito's colours, which people with any kind of colour vision tell apart, without yellow (too pale on white).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES = ("-", "--", ":", "-.")


def draw_curves(comparison: Comparison, path: Path, metric: str | None = None) -> list[str]:
    """Write the curves of the main metrics, one panel each, all groups overlaid with bands over their runs, as PNG;
    returns the metrics shown.

    Without any curve nothing is written. Of many groups only the best are coloured; ``metric`` says by what.
    """
    from matplotlib.figure import Figure

    names = main_metrics(comparison)
    if not names:
        return []
    order = ranking(comparison, main_metric(comparison, metric))
    named = order if len(order) <= _NAMED else order[: len(PALETTE)]
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(5.6 * columns, 3.4 * rows + 0.35 * len(named)), layout="constrained", dpi=150)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    lines: dict[int, tuple[Any, str]] = {}
    for panel, name in zip(panels, names, strict=False):
        for index, group in enumerate(comparison.groups):
            each = curve(group, name)
            points = [point for point in each.mean if math.isfinite(point[1])] if each else []
            if each is None or not points:
                continue
            place = named.index(index) if len(order) > _NAMED and index in named else index
            color = PALETTE[place % len(PALETTE)] if index in named else "#c9ced2"
            (line,) = panel.plot(
                *zip(*points, strict=True),
                color=color,
                linestyle=_DASHES[place // len(PALETTE) % len(_DASHES)] if index in named else "-",
                linewidth=1.6 if index in named else 0.8,
                zorder=2.5 if index in named else 1.5,
                marker="o" if len(points) < 20 and index in named else None,
                markersize=3,
            )
            if index in named:
                lines.setdefault(index, (line, group.label))
                _band(panel, each, color)
        _framed(panel, comparison, name)
        panel.set_title(name, fontsize=10, loc="left", parse_math=False)
        panel.set_xlabel("step", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(figure.axes)[len(names) :]:
        panel.set_visible(False)
    handles, labels = zip(*(lines[index] for index in named if index in lines), strict=True)
    legend = figure.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name with dollars is a name
    figure.savefig(path, format="png")
    return names


_NAMED = 12
"""Curves that colours and dashes tell apart; of more, only the best are coloured."""


def _band(panel: Any, each: Curve, color: str) -> None:
    """The interval of a mean."""
    if each.low:
        steps = [step for step, _ in each.low]
        low, high = [value for _, value in each.low], [value for _, value in each.high]
        panel.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def _framed(panel: Any, comparison: Comparison, name: str) -> None:
    """The frame follows the runs: bands of two or three seeds are wide and would hide them."""
    values = [v for run in comparison.runs for _, v in run.histories.get(name, ()) if math.isfinite(v)]
    if values:
        margin = 0.06 * (max(values) - min(values)) or 0.1 * abs(values[0]) or 1.0
        if math.isfinite(margin):
            panel.set_ylim(min(values) - margin, max(values) + margin)


_HEADS = 6
"""At most so many heads are shown one by one."""


def draw_attention(images: npt.NDArray[np.uint8], maps: npt.NDArray[np.float32], path: Path) -> None:
    """Write where each head of the last layer looks: a row for each image, then the mean of all heads and single heads.

    Args:
        images: (N, C, H, W) uint8.
        maps: (N, heads, h, w), not negative; each panel is scaled to its own largest value.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    shown = maps[:, :_HEADS]
    columns = 2 + shown.shape[1]
    figure = Figure(figsize=(1.3 * columns, 1.3 * len(images) + 0.3), layout="constrained", dpi=150)
    panels = figure.subplots(len(images), columns, squeeze=False)
    titles = ["image", "mean", *(f"head {number + 1}" for number in range(shown.shape[1]))]
    for row, image, heads in zip(panels, images, maps, strict=True):
        _show(row[0], image)
        for panel, attention in zip(row[1:], [heads.mean(axis=0), *heads[:_HEADS]], strict=True):
            panel.imshow(attention, cmap="magma", vmin=0)
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, fontsize=8)
    for panel in panels.flat:
        panel.set_axis_off()
    figure.savefig(path, format="png")


def draw_panels(titles: Sequence[str], images: npt.NDArray[np.uint8], path: Path) -> None:
    """Write pictures of some samples: a row for each sample, a column for each title.

    Args:
        titles: of the columns.
        images: (N, columns, C, H, W) uint8.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    samples, columns, _, height, width = images.shape
    side = 1.5  # inches
    size = (side * columns, side * samples * height / width + 0.35)
    figure = Figure(figsize=size, layout="constrained", dpi=max(150, math.ceil(width / side)))
    panels = figure.subplots(samples, columns, squeeze=False)
    for row, shown in zip(panels, images, strict=True):
        for panel, image in zip(row, shown, strict=True):
            _show(panel, image)
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(textwrap.fill(title, 24), fontsize=8, parse_math=False)
    for panel in panels.flat:
        panel.set_axis_off()
    figure.savefig(path, format="png")


def draw_points(points: npt.NDArray[np.float32], truth: npt.NDArray[np.float32], path: Path) -> None:
    """Write points (N, 2) that were made over points (M, 2) of the data, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained", dpi=150)
    panel = figure.subplots()
    panel.scatter(truth[:, 0], truth[:, 1], s=24, color=PALETTE[1], alpha=0.5, linewidths=0, label="data")
    panel.scatter(points[:, 0], points[:, 1], s=4, color=PALETTE[0], alpha=0.5, linewidths=0, label="made")
    panel.set_aspect("equal", adjustable="datalim")
    panel.legend(fontsize=8, frameon=False, loc="center")
    figure.savefig(path, format="png")


_RIGHT, _WRONG = PALETTE[0], PALETTE[1]


def draw_neighbours(
    images: npt.NDArray[np.uint8], nearest: npt.NDArray[np.uint8], right: npt.NDArray[np.bool_], path: Path
) -> None:
    """Write some test images and, beside each, the training images whose features are most similar to its own; frames
    and signs say which are of its class.

    Args:
        images: (N, C, H, W) uint8.
        nearest: (N, k, C, H, W) uint8, the most similar first.
        right: (N, k): whether they are of the same class.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    samples, columns = right.shape
    _, _, height, width = images.shape
    figure = Figure(
        figsize=(1.2 * (columns + 1), samples * (1.2 * height / width + 0.15) + 0.3), layout="constrained", dpi=150
    )
    panels = figure.subplots(samples, columns + 1, squeeze=False)
    for row, image, found, marks in zip(panels, images, nearest, right, strict=True):
        _show(row[0], image)
        row[0].set_axis_off()
        for panel, neighbour, same in zip(row[1:], found, marks, strict=True):
            _show(panel, neighbour)
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set(color=_RIGHT if same else _WRONG, linewidth=2.5, linestyle="-" if same else ":")
            panel.set_xlabel("✓" if same else "✗", fontsize=8, labelpad=1, color=_RIGHT if same else _WRONG)
    for panel, title in zip(panels[0], ["test image", *(f"nearest {n + 1}" for n in range(columns))], strict=True):
        panel.set_title(title, fontsize=8)
    figure.savefig(path, format="png")


def _show(panel: Any, image: npt.NDArray[np.uint8]) -> None:
    """Draw one image (C, H, W) uint8 as its pixels are."""
    pixels = image.transpose(1, 2, 0)
    shown = pixels if pixels.shape[2] == 3 else pixels[..., 0]
    panel.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")


_SERIES = {"eval": "trained", "baseline/untrained": "untrained network", "baseline/pixels": "raw pixels"}
_SERIES_COLORS = (PALETTE[0], PALETTE[5], "#9a9a9a")


def draw_results(results: Mapping[str, float], title: str, path: Path) -> bool:
    """Write the accuracies of a run beside those of its baselines, as bars with 95 % intervals, as PNG.

    Returns whether there was an accuracy to show; without one nothing is written.
    """
    from matplotlib.figure import Figure

    measures = [name.removeprefix("eval/") for name in results if name.startswith("eval/") and name.endswith("_top1")]
    if not measures:
        return False
    figure = Figure(figsize=(max(5.2, 1.9 * len(measures) + 1.2), 3.6), layout="constrained", dpi=150)
    panel = figure.subplots()
    series = [prefix for prefix in _SERIES if any(f"{prefix}/{measure}" in results for measure in measures)]
    width = 0.8 / len(series)
    for number, prefix in enumerate(series):
        cells = [cell(results, f"{prefix}/{measure}") for measure in measures]
        heights = [100 * each.value if each else math.nan for each in cells]
        errors = [100 * (each.interval or 0.0) if each else 0.0 for each in cells]
        places = [index + (number - (len(series) - 1) / 2) * width for index in range(len(measures))]
        color = _SERIES_COLORS[list(_SERIES).index(prefix)]
        panel.bar(places, heights, 0.92 * width, label=_SERIES[prefix], color=color)
        panel.errorbar(places, heights, errors, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
        for place, height, error in zip(places, heights, errors, strict=True):
            if not math.isnan(height):  # raw pixels are judged by some evaluators only
                panel.text(place, height + error + 1.2, f"{height:.1f}", ha="center", fontsize=8)
    panel.set_xticks(range(len(measures)), [_measure_title(measure) for measure in measures], fontsize=9)
    panel.set_ylim(0, 112)
    panel.set_yticks(range(0, 101, 20))
    panel.set_ylabel("accuracy, %", fontsize=9)
    panel.tick_params(axis="y", labelsize=8)
    panel.grid(axis="y", alpha=0.25, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(title, fontsize=10, loc="left", parse_math=False)
    figure.legend(loc="outside lower left", ncols=len(series), fontsize=8, frameon=False)
    figure.savefig(path, format="png")
    return True


def _measure_title(measure: str) -> str:
    """``few_label_5_top1`` -> 5 labels per class; anything else as words."""
    name = measure.removesuffix("_top1")
    labels = name.removeprefix("few_label_")
    if labels.isdigit():
        return f"{labels} label{'s' if labels != '1' else ''} per class"
    titles = {
        "knn": "nearest neighbours",
        "linear": "linear probe",
        "attentive": "attentive probe",
        "fine_tune": "fine-tuning",
    }
    return titles.get(name, name.replace("_", " "))
