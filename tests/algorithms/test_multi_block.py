from __future__ import annotations

import math
import random as python_random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from heliostat_algorithms.masking.multi_block import BlockMasks, MultiBlockMasking
from heliostat_algorithms.randomness import Random

GRID = (14, 14)
FAITHFUL, CORRECTED = MultiBlockMasking(), MultiBlockMasking(sampler="corrected")
BOTH = pytest.mark.parametrize("masking", [FAITHFUL, CORRECTED], ids=lambda masking: masking.sampler)


def masks(masking: MultiBlockMasking, step: int = 0, batch: int = 64, rows: range | None = None) -> BlockMasks:
    return masking(Random(5, step, range(batch) if rows is None else rows), batch, GRID)


def pictures(places: torch.Tensor, grid: tuple[int, int] = GRID) -> NDArray[np.bool_]:
    """(..., K) places -> (..., down, across), true where a patch is listed."""
    found = np.zeros((*places.shape[:-1], math.prod(grid)), dtype=bool)
    np.put_along_axis(found, places.numpy(), True, axis=-1)
    return found.reshape(*places.shape[:-1], *grid)


def rectangle(block: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a block, which must be a full rectangle."""
    rows, columns = np.flatnonzero(block.any(axis=1)), np.flatnonzero(block.any(axis=0))
    top, left, height, width = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert block[top : top + height, left : left + width].all()
    assert block.sum() == height * width
    return int(top), int(left), int(height), int(width)


def official_size(u: float, v: float, scale: tuple[float, float], aspect: tuple[float, float], clip: int) -> Any:
    """Height and width of a block by the official rule, for a draw of the scale and one of the aspect."""
    patches = int(196 * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + v * (aspect[1] - aspect[0])
    return min(clip, round((patches * ratio) ** 0.5)), min(clip, round((patches / ratio) ** 0.5))


def official_masks(source: python_random.Random) -> tuple[set[int], list[set[int]]]:
    """Context and targets of one image, before any cut, by the official code's rule: patches as sets."""
    u = source.random()
    size = official_size(u, u, (0.15, 0.2), (0.75, 1.5), 13)
    square = official_size(source.random(), 0.0, (0.85, 1.0), (1.0, 1.0), 13)

    def block(h: int, w: int) -> set[int]:
        top, left = source.randrange(14 - h), source.randrange(14 - w)
        return {row * 14 + column for row in range(top, top + h) for column in range(left, left + w)}

    targets = [block(*size) for _ in range(4)]
    removed, failures = 4, 0
    while True:
        context = block(*square).difference(*targets[:removed])
        if len(context) > 10:
            return context, targets
        failures += 1
        if failures % 20 == 0:
            removed = max(removed - 1, 0)


@BOTH
def test_targets_are_rectangles_of_one_size_for_the_whole_batch(masking: MultiBlockMasking) -> None:
    sizes = set()
    for step in range(40):
        found = pictures(masks(masking, step, batch=16).targets)
        assert found.shape[:2] == (4, 16)
        shapes = {rectangle(block)[2:] for block in found.reshape(-1, *GRID)}
        assert len(shapes) == 1
        sizes |= shapes
        places = {rectangle(block)[:2] for block in found.reshape(-1, *GRID)}
        assert len(places) > 10  # but each at a place of its own
    assert len(sizes) > 3


@BOTH
def test_sizes_are_as_frequent_as_the_rule_makes_them(masking: MultiBlockMasking) -> None:
    count = 400
    found = Counter(rectangle(pictures(masks(masking, step, batch=1).targets)[0, 0])[2:] for step in range(count))
    draws = (np.arange(400) + 0.5) / 400
    pairs = [(u, u) for u in draws] if masking is FAITHFUL else [(u, v) for u in draws for v in draws]
    expected = Counter(official_size(u, v, (0.15, 0.2), (0.75, 1.5), 14) for u, v in pairs)
    assert set(found) <= set(expected)
    for size, times in expected.items():
        share = times / len(pairs)
        assert abs(found[size] / count - share) < 4 * math.sqrt(share * (1 - share) / count) + 0.003, size


def test_the_official_code_draws_size_and_shape_together() -> None:
    """Its smallest targets are the flattest ones; corrected, small ones are also high."""
    shapes = {
        masking.sampler: np.array(
            [rectangle(pictures(masks(masking, step, batch=1).targets)[0, 0])[2:] for step in range(300)]
        )
        for masking in (FAITHFUL, CORRECTED)
    }
    correlation = {
        name: np.corrcoef(np.prod(found, axis=1), found[:, 0] / found[:, 1])[0, 1] for name, found in shapes.items()
    }
    assert correlation["faithful"] > 0.5
    assert abs(correlation["corrected"]) < 0.25


def test_faithful_targets_are_placed_short_of_the_last_row_and_column() -> None:
    corners: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for step in range(60):
        for block in pictures(masks(FAITHFUL, step, batch=32).targets).reshape(-1, *GRID):
            top, left, height, width = rectangle(block)
            corners.setdefault((height, width), []).append((top, left))
    size, found = max(corners.items(), key=lambda item: len(item[1]))
    tops, lefts = np.array(found).T
    for first, side in ((tops, size[0]), (lefts, size[1])):
        times = np.bincount(first, minlength=14 - side)
        assert len(times) == 14 - side  # 0 to 13 - side: the last place, 14 - side, is never drawn
        assert (abs(times / len(first) - 1 / len(times)) < 5 / np.sqrt(len(first) * len(times))).all()


def test_corrected_blocks_lie_anywhere() -> None:
    for step in range(10):
        for block in pictures(masks(CORRECTED, step, batch=16).targets).reshape(-1, *GRID):
            top, left, height, width = rectangle(block)
            assert top + height <= 14
            assert left + width <= 14
    for step in range(10):
        found = pictures(masks(CORRECTED, step, batch=256).targets)
        size = rectangle(found[0, 0])[2:]
        tops = Counter(rectangle(block)[0] for block in found.reshape(-1, *GRID))
        assert set(tops) == set(range(14 - size[0] + 1))
        expected = 1024 / (14 - size[0] + 1)
        assert all(abs(times - expected) < 5 * math.sqrt(expected) for times in tops.values())


def coverage(masking: MultiBlockMasking, steps: int, batch: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often each patch is in the context, (steps, down, across) shares of the batch, and in a target."""
    found = [masks(masking, step, batch) for step in range(steps)]
    contexts = np.stack([pictures(each.context).mean(axis=0) for each in found])
    return contexts, np.stack([pictures(each.targets).mean(axis=(0, 1)) for each in found])


def test_the_official_defects_are_there() -> None:
    contexts, targets = (shares.mean(axis=0) for shares in coverage(FAITHFUL, 60, 128))
    for shares in (contexts, targets):
        assert (shares[-1] == 0).all()
        assert (shares[:, -1] == 0).all()
    rows = contexts[:, :-1].mean(axis=1)
    assert rows[0] > 0.6
    assert rows[-2] < 0.1
    assert rows[0] > 10 * rows[-2]
    # The targets alone would not starve the bottom: they are as likely there as at the top of what they reach.
    np.testing.assert_allclose(targets[:-1].mean(axis=1), targets[:-1][::-1].mean(axis=1), atol=0.02)


def test_corrected_masks_are_symmetric() -> None:
    for shares in coverage(CORRECTED, 80, 128):
        assert (shares.mean(axis=0) > 0.01).all()
        for axis in (1, 2):
            lines = shares.mean(axis=3 - axis)
            difference = lines - lines[:, ::-1]
            error = difference.std(axis=0, ddof=1) / math.sqrt(len(difference))
            assert (abs(difference.mean(axis=0)) < 4.5 * error + 1e-12).all()


def test_a_cut_leaves_a_random_part_of_a_corrected_context() -> None:
    """Blocks over the whole grid and one target: all images but for their targets are alike, and cut to the same."""
    masking = MultiBlockMasking(sampler="corrected", context_scale=(1.0, 1.0), target_blocks=2)
    made = masks(masking, batch=512)
    covered = pictures(made.targets).any(axis=0)
    kept, free = pictures(made.context), 196 - covered.reshape(512, -1).sum(axis=1)
    assert made.context.shape[1] == free.min()
    assert not (kept & covered).any()
    share = made.context.shape[1] / free
    spread = share.max() - share.min()
    assert spread > 0.1
    for row in range(14):  # within a row the share of the free patches that is kept is that of the whole image
        expected = (share[:, None] * ~covered[:, row]).sum()
        assert abs(kept[:, row].sum() - expected) < 5 * math.sqrt(expected)


def test_faithful_contexts_are_as_large_as_the_official_rule_makes_them() -> None:
    source = python_random.Random(0)
    official = [official_masks(source) for _ in range(700)]
    ours = [masks(FAITHFUL, step, batch=1) for step in range(700)]  # alone in its batch, no context is cut
    sizes = np.array([len(context) for context, _ in official]), np.array([made.context.shape[1] for made in ours])
    error = math.sqrt(sum(size.var() for size in sizes) / 700)
    assert abs(sizes[0].mean() - sizes[1].mean()) < 4 * error
    assert abs(sizes[0].std() / sizes[1].std() - 1) < 0.15
    rows = np.zeros((2, 14))
    for context, _ in official:
        rows[0] += np.bincount([place // 14 for place in context], minlength=14)
    for made in ours:
        rows[1] += np.bincount(made.context[0].numpy() // 14, minlength=14)
    np.testing.assert_allclose(rows[1], rows[0], rtol=0.07)


@BOTH
def test_contexts_leave_the_targets_out_and_are_cut_to_the_smallest(masking: MultiBlockMasking) -> None:
    for step in range(30):
        made = masks(masking, step)
        assert (made.context.dtype, made.targets.dtype) == (torch.int64, torch.int64)
        assert not made.overlapping.any()
        assert made.context.shape[1] > 10
        assert (made.context.diff(dim=1) > 0).all()
        assert (made.targets.diff(dim=2) > 0).all()
        assert not (pictures(made.context) & pictures(made.targets).any(axis=0)).any()


def test_a_faithful_cut_keeps_the_first_patches() -> None:
    """The contexts of a batch: the 13 x 13 block less its targets, patch by patch from the top left, to the smallest
    count."""
    for step in range(6):
        made = masks(FAITHFUL, step)
        targets = made.targets.numpy()
        whole = [
            [place for place in range(196) if place // 14 < 13 and place % 14 < 13 and place not in targets[:, image]]
            for image in range(64)
        ]
        keep = min(map(len, whole))
        assert made.context.tolist() == [places[:keep] for places in whole]


def test_contexts_that_are_too_small_keep_targets_from_the_last_on() -> None:
    """On 4 x 4 patches the context's block has one place, so that all follows from the targets."""
    masking, grid, relaxed = MultiBlockMasking(min_keep=3), (4, 4), 0
    masking.check(grid)
    block = {0, 1, 2, 4, 5, 6, 8, 9, 10}
    for step in range(60):
        made = masking(Random(3, step, range(16)), 16, grid)
        contexts = []
        for image in range(16):
            targets = [set(target[image].tolist()) for target in made.targets]
            left = [block.difference(*targets[:count]) for count in (4, 3, 2, 1, 0)]
            contexts.append(sorted(next(context for context in left if len(context) > 3)))
        keep = min(map(len, contexts))
        assert keep > 3
        assert made.context.tolist() == [context[:keep] for context in contexts]
        for image in range(16):
            shown = set(made.targets[:, image].flatten().tolist()) & set(made.context[image].tolist())
            assert bool(made.overlapping[image]) == bool(shown)
        relaxed += int(made.overlapping.sum())
    assert relaxed > 50


def test_another_place_is_tried_before_a_context_may_keep_a_target() -> None:
    """A context of 6 x 6 on 12 x 12 patches: many places leave too little of it, and for one image all do."""
    grid, options = (12, 12), {"sampler": "corrected", "context_scale": (0.25, 0.25)}
    strict, plain = (MultiBlockMasking(min_keep=keep, **options) for keep in (18, 0))  # type: ignore[arg-type]
    seen = {"moved": 0, "kept": 0, "impossible": 0}
    for step in range(250):
        made, first = (masking(Random(2, step, range(1)), 1, grid) for masking in (strict, plain))
        assert torch.equal(made.targets, first.targets)
        free = ~pictures(made.targets, grid)[:, 0].any(axis=0)
        left = [free[top : top + 6, start : start + 6].sum() for top in range(7) for start in range(7)]
        suitable = np.mean(np.array(left) > 18)
        assert made.context.shape[1] > 18
        if first.context.shape[1] > 18:  # a first place that will do is not given up
            assert torch.equal(made.context, first.context)
            seen["kept"] += 1
        elif suitable > 0.4:  # one of 20 places will do, but for one image in 27,000
            assert not made.overlapping.any()
            seen["moved"] += 1
        elif suitable == 0:
            assert made.overlapping.all()
            seen["impossible"] += 1
    assert min(seen["moved"], seen["kept"]) >= 10
    assert seen["impossible"]


@BOTH
def test_workers_draw_their_rows_of_the_same_masks(masking: MultiBlockMasking) -> None:
    whole = masks(masking, batch=16)
    for size in (8, 4, 1):
        parts = [masks(masking, batch=16, rows=range(first, first + size)) for first in range(0, 16, size)]
        assert torch.equal(whole.context, torch.cat([part.context for part in parts]))
        assert torch.equal(whole.targets, torch.cat([part.targets for part in parts], dim=1))
        assert torch.equal(whole.overlapping, torch.cat([part.overlapping for part in parts]))
    assert not torch.equal(whole.targets[:, 0], whole.targets[:, 1])
    other = masks(masking, step=1, batch=16)
    assert other.targets.shape != whole.targets.shape or not torch.equal(other.targets, whole.targets)


@pytest.mark.parametrize(("grid", "min_keep"), [((4, 4), 2), ((8, 8), 3), ((6, 11), 5), ((16, 16), 10), ((3, 3), 0)])
@BOTH
def test_other_grids(masking: MultiBlockMasking, grid: tuple[int, int], min_keep: int) -> None:
    masking = MultiBlockMasking(sampler=masking.sampler, min_keep=min_keep)
    masking.check(grid)
    for step in range(20):
        made = masking(Random(1, step, range(8, 16)), 32, grid)
        assert made.context.shape == (8, made.context.shape[1])
        assert made.context.shape[1] > min_keep
        assert made.targets.shape[:2] == (4, 8)
        for places in (made.context, made.targets):
            assert int(places.min()) >= 0
            assert int(places.max()) < math.prod(grid)
        for block in pictures(made.targets, grid).reshape(-1, *grid):
            rectangle(block)


@pytest.mark.parametrize(
    ("options", "grid", "message"),
    [
        ({}, (4, 4), r"on a grid of 4 x 4 patches a context may have no more than \d patches beside a target of 4"),
        ({"min_keep": 7}, (4, 4), "min_keep asks for more than 7"),
        ({}, (2, 2), r"targets of 0\.15 of a grid of 2 x 2 patches may be empty"),
        ({}, (1, 14), "targets may be .* the faithful sampler has room for 0 x 13"),
        ({"target_aspect": (0.1, 0.2), "min_keep": 2}, (6, 6), "narrow target_aspect"),
        ({"target_scale": (0.15, 0.86), "target_aspect": (1.0, 1.0)}, (14, 14), "0 patches beside a target of 169"),
        ({"context_scale": (0.04, 1.0)}, (14, 14), "raise context_scale"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], grid: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiBlockMasking(**options).check(grid)


def test_drawing_what_does_not_fit_is_refused_too() -> None:
    with pytest.raises(ValueError, match=r"targets of \d x \d patches do not fit a grid of 1 x 14"):
        FAITHFUL(Random(0, 0, range(2)), 2, (1, 14))
    with pytest.raises(ValueError, match="a context of 3 x 3 patches does not have more than min_keep = 10"):
        FAITHFUL(Random(0, 0, range(2)), 2, (4, 4))


def test_what_the_faithful_sampler_never_reaches_does_not_count() -> None:
    """Of 9 patches it reaches 4; the corrected one all."""
    options: dict[str, Any] = {"min_keep": 4, "context_scale": (1.0, 1.0)}
    MultiBlockMasking(sampler="corrected", **options).check((3, 3))
    with pytest.raises(ValueError, match="no more than 3 patches"):
        MultiBlockMasking(**options).check((3, 3))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"target_blocks": 0}, "target_blocks is 0"),
        ({"target_scale": (0.3, 0.2)}, "target_scale is"),
        ({"target_scale": (0.0, 0.2)}, "target_scale is"),
        ({"context_scale": (0.85, 1.1)}, "context_scale is"),
        ({"target_aspect": (0.0, 1.5)}, "target_aspect is"),
        ({"target_aspect": (1.5, math.inf)}, "target_aspect is"),
        ({"min_keep": -1}, "min_keep is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiBlockMasking(**bad)
