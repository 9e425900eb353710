from __future__ import annotations

import itertools
import math
import random as python_random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heliostat_algorithms.masking.blocks import BlockMasking
from heliostat_algorithms.randomness import Random

GRID = (14, 14)
MASKING = BlockMasking()


def masks(rows: range, step: int = 0, batch: int = 16, masking: BlockMasking = MASKING, crops: int = 2) -> Tensor:
    return masking(Random(5, step, rows), crops, batch, GRID)


def hidden_by_the_papers_rule(
    patches: int, grid: tuple[int, int], attempts: Iterator[list[float]], smallest: int, aspect: tuple[float, float]
) -> set[tuple[int, int]]:
    """The patches that BEiT's blocks hide, as a set: grown block by block, with at most ten attempts for each."""
    hidden: set[tuple[int, int]] = set()
    while len(hidden) < patches:
        left = patches - len(hidden)
        grown = False
        for _ in range(10):
            u = next(attempts)
            area = (1 - u[0]) * smallest + u[0] * left
            ratio = math.exp((1 - u[1]) * math.log(aspect[0]) + u[1] * math.log(aspect[1]))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h >= grid[0] or w >= grid[1]:
                continue
            top, start = math.floor(u[2] * (grid[0] - h + 1)), math.floor(u[3] * (grid[1] - w + 1))
            new = set(itertools.product(range(top, top + h), range(start, start + w))) - hidden
            if 1 <= len(new) <= left:
                hidden |= new
                grown = True
                break
        if not grown:
            break
    return hidden


@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (6, 11)])
def test_blocks_are_placed_by_the_papers_rule(grid: tuple[int, int]) -> None:
    source = python_random.Random(1)
    for patches in [0, 1, 3, 5, math.prod(grid) // 4, math.prod(grid) // 2] * 8:
        draws = [[source.random() for _ in range(4)] for _ in range(2000)]
        found = MASKING.mask(patches, grid, iter(draws))
        expected = hidden_by_the_papers_rule(patches, grid, iter(draws), 4, (0.3, 1 / 0.3))
        assert set(zip(*(axis.tolist() for axis in np.nonzero(found)), strict=True)) == expected
        assert len(expected) <= patches


def test_a_block_worked_out_by_hand() -> None:
    # Area 4 + 0.5 * (20 - 4) = 12 and aspect 1: 3 x 3, in the last row and column of places. Then at most 11 are left:
    # area 4 + 0.5 * 7 = 7.5, again 3 x 3, over the first block but for a row of 3; then 8 left: area 6, 2 x 2.
    draws = [[0.5, 0.5, 0.999, 0.999], [0.5, 0.5, 10.5 / 12, 0.999], [0.5, 0.5, 0.0, 0.0]]
    expected = np.zeros(GRID, dtype=bool)
    expected[11:, 11:] = expected[10:13, 11:] = expected[:2, :2] = True
    stop = itertools.repeat([0.999, 0.999, 0.0, 0.0])  # area 4, as high as 4 and 1 across: fits once, then never again
    expected[:4, 0] = True
    np.testing.assert_array_equal(MASKING.mask(20, GRID, itertools.chain(draws, stop)), expected)


def test_ten_blocks_in_a_row_that_do_not_fit_end_a_mask() -> None:
    count = 0

    def too_high() -> Iterator[list[float]]:
        nonlocal count
        while True:
            count += 1
            yield [0.9, 0.999, 0.5, 0.5]

    assert not BlockMasking(aspect=(0.3, 30.0)).mask(90, GRID, too_high()).any()
    assert count == 10
    count = 0
    assert not BlockMasking(aspect=(0.3, 30.0), attempts=4).mask(90, GRID, too_high()).any()
    assert count == 4


@pytest.mark.parametrize("probability", [0.25, 0.5, 1.0])
def test_exactly_the_wanted_share_of_the_global_crops_is_masked(probability: float) -> None:
    where = []
    for step in range(20):
        counts = masks(range(16), step, masking=BlockMasking(probability=probability)).sum(dim=1)
        assert int((counts > 0).sum()) == 32 * probability
        where.append(counts > 0)
    if probability < 1:
        share = torch.stack(where).double().mean(dim=0)
        assert share.min() > 0  # every place of the batch is masked at times, none always
        assert share.max() < 1
        both = torch.stack(where).unflatten(1, (2, 16)).all(dim=1).any()
        assert both  # the two crops of an image are not each other's complement


def test_shares_are_stratified() -> None:
    """The i-th smallest mask lies below the upper end of the i-th of 16 strata from 0.1 to 0.5, and near it."""
    for step in range(20):
        counts = masks(range(16), step).sum(dim=1)
        sizes = torch.sort(counts[counts > 0]).values.double()
        ends = [int(196 * (0.1 + 0.4 * (i + 1) / 16)) for i in range(16)]
        assert all(size <= end for size, end in zip(sizes.tolist(), ends, strict=True))
        assert abs(float(sizes.mean()) / 196 - 0.3) < 0.04  # masks that were ended early are a little smaller


def test_masks_are_as_large_as_the_official_rule_makes_them() -> None:
    source = python_random.Random(0)
    wanted = 60
    official = [
        len(
            hidden_by_the_papers_rule(
                wanted, GRID, iter(lambda: [source.random() for _ in range(4)], []), 4, (0.3, 1 / 0.3)
            )
        )
        for _ in range(400)
    ]
    narrow = BlockMasking(ratio=(60.5 / 196, 60.5 / 196), probability=1.0)
    ours = masks(range(200), batch=200, masking=narrow).sum(dim=1).double()
    error = (np.std(official) ** 2 / 400 + float(ours.std()) ** 2 / 400) ** 0.5
    assert abs(np.mean(official) - float(ours.mean())) < 4 * error
    assert int(ours.max()) == wanted


def test_rows_are_drawn_from_the_step_and_their_place_alone() -> None:
    whole = masks(range(16)).view(2, 16, -1)
    parts = [masks(range(a, a + 4)).view(2, 4, -1) for a in range(0, 16, 4)]
    assert torch.equal(whole, torch.cat(parts, dim=1))
    assert torch.equal(whole[:, 7:8], masks(range(7, 8)).view(2, 1, -1))
    assert not torch.equal(whole, masks(range(16), step=1).view(2, 16, -1))
    hidden = [mask for mask in whole.flatten(0, 1) if mask.any()]
    assert len({tuple(mask.tolist()) for mask in hidden}) == len(hidden)


def test_masks_are_on_the_cpu_and_ordered_by_crop() -> None:
    found = BlockMasking()(Random(1, 0, range(2, 5)), 3, 8, (4, 6))
    assert (found.shape, found.dtype, found.device.type) == ((9, 24), torch.bool, "cpu")


def test_a_batch_in_which_nothing_would_be_masked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of 4 crops in a batch a share of 0\.2 would be masked"):
        masks(range(2), batch=2, masking=BlockMasking(probability=0.2))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"probability": 0.0}, "probability is 0.0"),
        ({"probability": 1.5}, "probability is 1.5"),
        ({"ratio": (0.5, 0.1)}, "ratio is"),
        ({"ratio": (0.0, 0.5)}, "ratio is"),
        ({"ratio": (0.5, 1.5)}, "ratio is"),
        ({"aspect": (0.0, 1.0)}, "aspect is"),
        ({"aspect": (2.0, 1.0)}, "aspect is"),
        ({"smallest_block": 0}, "smallest_block is 0"),
        ({"attempts": 0}, "attempts is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockMasking(**bad)
