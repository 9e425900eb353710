"""Pictures of single images, and of results that not all baselines have."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from heliostat.tracking.figures import draw_neighbours, draw_panels, draw_results
from heliostat.tracking.metrics import cell, direction


def size(path: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width, height


@pytest.mark.parametrize("name", ["retrieval_recall_10", "retrieval_precision_5", "retrieval_map", "attentive_top1"])
def test_shares_of_right_samples_are_per_cents_and_better_when_higher(name: str) -> None:
    assert direction(f"eval/{name}") == "higher"
    assert str(cell({f"eval/{name}": 0.5}, f"eval/{name}")) == "50.0%"


def test_what_was_chosen_is_no_share_and_has_no_direction() -> None:
    assert direction("eval/attentive_lr") is None
    assert str(cell({"eval/attentive_lr": 0.001}, "eval/attentive_lr")) == "0.001"


def test_a_bar_is_missing_where_a_baseline_has_no_such_measure(tmp_path: Path) -> None:
    """Raw pixels have no tokens, though that measure comes first."""
    results = {
        "eval/attentive_top1": 0.9,
        "eval/knn_top1": 0.8,
        "baseline/untrained/attentive_top1": 0.5,
        "baseline/untrained/knn_top1": 0.5,
    }
    without, beside = tmp_path / "without.png", tmp_path / "beside.png"
    assert draw_results(results, "run", without)
    assert draw_results({**results, "baseline/pixels/knn_top1": 0.6}, "run", beside)
    assert without.read_bytes() != beside.read_bytes()
    assert size(without) == size(beside)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 40)])
def test_panels_are_as_wide_as_their_columns_and_no_smaller_than_their_pixels(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    sizes = []
    for columns in (2, 4):
        path = tmp_path / f"{columns}.png"
        draw_panels(("a $title$",) * columns, np.zeros((3, columns, *shape), np.uint8), path)
        sizes.append(size(path))
    assert sizes[1][0] == 2 * sizes[0][0] > 2 * 2 * shape[2]
    large = tmp_path / "large.png"
    draw_panels(("x",), np.zeros((1, 1, 3, 600, 600), np.uint8), large)
    assert min(size(large)) >= 600


def test_right_and_wrong_neighbours_look_different(tmp_path: Path) -> None:
    image = np.full((2, 3, 8, 8), 127, np.uint8)
    drawn = []
    for right in (True, False):
        path = tmp_path / f"{right}.png"
        draw_neighbours(image, np.stack([image] * 3, axis=1), np.full((2, 3), right), path)
        drawn.append(path)
    assert size(drawn[0])[0] == size(drawn[1])[0]
    assert drawn[0].read_bytes() != drawn[1].read_bytes()
