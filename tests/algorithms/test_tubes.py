from __future__ import annotations

import itertools
import math
import random as python_random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heliostat_algorithms.masking import tubes
from heliostat_algorithms.masking.tubes import TubeMasking, TubeMasks
from heliostat_algorithms.randomness import Random

SHORT = TubeMasking(blocks=8, scale=0.15)
LONG = TubeMasking(blocks=2, scale=0.7)
KINDS = [SHORT, LONG]
GRID = (8, 14, 14)


def draw(
    masking: TubeMasking, rows: range, step: int = 0, batch: int = 16, grid: tuple[int, int, int] = GRID
) -> TubeMasks:
    return masking(Random(5, step, rows), batch, grid)


def official_size(masking: TubeMasking, draw: float, size: tuple[int, int]) -> tuple[int, int]:
    area = int(size[0] * size[1] * masking.scale)
    aspect = masking.aspect[0] + draw * (masking.aspect[1] - masking.aspect[0])
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(height, size[0]), min(width, size[1])


def naive(masking: TubeMasking, step: int, batch: int, grid: tuple[int, int, int]) -> tuple[list[Any], list[Any]]:
    """The official sampler, one clip and one block at a time, with sets of (frame, row, column)."""
    random = Random(5, step, range(batch))
    depth, down, across = grid
    height, width = official_size(masking, float(random.shared().uniform("aspect")), (down, across))
    contexts, targets = [], []
    for row in range(batch):
        for attempt in itertools.count():
            places = random.uniform(f"place{attempt}", masking.blocks, 2)[row].tolist()
            hidden = set()
            for u, v in places:
                top, left = math.floor(u * (down - height + 1)), math.floor(v * (across - width + 1))
                hidden |= set(itertools.product(range(depth), range(top, top + height), range(left, left + width)))
            if len(hidden) < math.prod(grid):
                break
        numbers = sorted((t * down + r) * across + c for t, r, c in hidden)
        targets.append(numbers)
        contexts.append(sorted(set(range(math.prod(grid))) - set(numbers)))
    keep, ask = min(map(len, contexts)), min(map(len, targets))
    return [context[:keep] for context in contexts], [target[:ask] for target in targets]


@pytest.mark.parametrize("masking", KINDS)
@pytest.mark.parametrize("grid", [GRID, (2, 4, 4), (1, 6, 9)])
def test_masks_are_those_of_the_official_sampler(masking: TubeMasking, grid: tuple[int, int, int]) -> None:
    for step in range(5):
        found = draw(masking, range(6), step, 6, grid)
        contexts, targets = naive(masking, step, 6, grid)
        assert found.context.tolist() == contexts
        assert found.targets.tolist() == targets


def block_corners(masking: TubeMasking, step: int, batch: int = 200) -> tuple[set[tuple[int, int]], Tensor]:
    """Sizes and corners of single blocks, read off the masks."""
    hidden = replace(masking, blocks=1).hidden(Random(5, step, range(batch)), batch, (14, 14)).view(batch, 14, 14)
    rows, columns = hidden.any(dim=2), hidden.any(dim=1)
    sizes = {(int(r.sum()), int(c.sum())) for r, c in zip(rows, columns, strict=True)}
    assert all(int(mask.sum()) == r.sum() * c.sum() for mask, r, c in zip(hidden, rows, columns, strict=True))
    return sizes, torch.stack([rows.to(torch.uint8).argmax(1), columns.to(torch.uint8).argmax(1)], dim=1)


@pytest.mark.parametrize("masking", KINDS)
def test_blocks_have_one_size_in_a_step_and_all_allowed_sizes_over_time(masking: TubeMasking) -> None:
    seen = set()
    for step in range(150):
        sizes, _ = block_corners(masking, step, batch=4)
        assert len(sizes) == 1
        seen |= sizes
    allowed = {official_size(masking, draw / 2000, (14, 14)) for draw in range(2000)}
    assert seen <= allowed
    common = {official_size(masking, draw / 40, (14, 14)) for draw in range(2, 39)}
    assert common <= seen
    for height, width in seen:
        assert 0.6 < height / width < 1.8  # 0.75 to 1.5, rounded to patches
        assert height * width / 196 == pytest.approx(masking.scale, abs=0.06)


@pytest.mark.parametrize("masking", KINDS)
def test_blocks_lie_everywhere_equally_often_the_last_row_and_column_included(masking: TubeMasking) -> None:
    counts: dict[tuple[int, int, int, int], int] = {}
    total = 0
    for step in range(40):
        ((height, width),), corners = block_corners(masking, step)
        if (height, width) != official_size(masking, 1 / 3, (14, 14)):  # squares
            continue
        total += len(corners)
        for top, left in corners.tolist():
            counts[(top, left, height, width)] = counts.get((top, left, height, width), 0) + 1
    (side,) = {key[2] for key in counts}
    places = (14 - side + 1) ** 2
    assert total >= 1000
    assert len(counts) == places
    assert {key[0] for key in counts} == {key[1] for key in counts} == set(range(14 - side + 1))
    expected = total / places
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert abs(chi_square - (places - 1)) < 5 * math.sqrt(2 * places)


def simulated(masking: TubeMasking, batch: int, repeats: int) -> tuple[list[float], list[float], list[float]]:
    """By the official rule with Python's random numbers: the share of patches that is hidden, that is left as context
    and that is predicted, batch by batch."""
    source = python_random.Random(0)
    hidden, seen, predicted = [], [], []
    for _ in range(repeats):
        height, width = official_size(masking, source.random(), (14, 14))
        sizes = []
        for _ in range(batch):
            covered = set()
            for _ in range(masking.blocks):
                top, left = source.randint(0, 14 - height), source.randint(0, 14 - width)
                covered |= set(itertools.product(range(top, top + height), range(left, left + width)))
            sizes.append(len(covered) / 196)
        hidden.append(sum(sizes) / batch)
        seen.append(1 - max(sizes))
        predicted.append(min(sizes))
    return hidden, seen, predicted


@pytest.mark.parametrize("sampler", ["faithful", "corrected"])
@pytest.mark.parametrize(("masking", "share", "left"), [(SHORT, 0.63, 0.23), (LONG, 0.815, 0.055)])
def test_as_much_is_hidden_as_in_the_official_batches_of_24(
    masking: TubeMasking, share: float, left: float, sampler: Any
) -> None:
    """A clip's blocks hide 63 % and 82 % of it; cut to the smallest of 24, contexts keep 23 % and 5 %, which is why the
    paper speaks of about 90 % that is masked."""
    masking = replace(masking, sampler=sampler)
    expected = simulated(masking, 24, 60)
    found: tuple[list[float], ...] = ([], [], [])
    for step in range(60):
        found[0].append(masking.hidden(Random(5, step, range(24)), 24, (14, 14)).double().mean().item())
        context, targets = draw(masking, range(1), step, 24)
        found[1].append(context.shape[1] / math.prod(GRID))
        found[2].append(targets.shape[1] / math.prod(GRID))
    for ours, official in zip(found, expected, strict=True):
        error = math.sqrt((np.var(ours) + np.var(official)) / 60)
        assert abs(np.mean(ours) - np.mean(official)) < 4 * error
    assert np.mean(found[0]) == pytest.approx(share, abs=0.02)
    assert np.mean(found[1]) == pytest.approx(left, abs=0.025)


def coverage(masking: TubeMasking, what: str, steps: int = 60, batch: int = 24) -> Tensor:
    """(8, 14, 14): how often each patch is in the context, or among the targets."""
    total = torch.zeros(math.prod(GRID), dtype=torch.float64)
    for step in range(steps):
        masks = getattr(draw(masking, range(batch), step, batch), what)
        total += torch.bincount(masks.flatten(), minlength=len(total))
    return (total / (steps * batch)).view(GRID)


@pytest.mark.parametrize("masking", KINDS)
@pytest.mark.parametrize("what", ["context", "targets"])
def test_corrected_masks_last_as_long_as_the_clip_and_favour_no_side(masking: TubeMasking, what: str) -> None:
    shares = coverage(replace(masking, sampler="corrected"), what)
    assert torch.equal(shares, shares[:1].expand(8, -1, -1))
    frame = shares[0]
    assert frame.min() > 0 or (what == "context" and masking is LONG)  # 12 x 12 blocks always hide the middle
    for axis in (0, 1):
        profile = frame.mean(dim=1 - axis)
        scale = float(profile.max())
        assert torch.allclose(profile, profile.flip(0), atol=0.12 * scale, rtol=0)


@pytest.mark.parametrize("masking", KINDS)
def test_faithful_masks_starve_the_last_frames(masking: TubeMasking) -> None:
    """What is documented of the official sampler: clips are cut to the smallest, and lose what comes last."""
    seen = coverage(masking, "context").mean(dim=(1, 2))
    assert (seen.diff() <= 1e-12).all()
    assert seen[-1] < 0.5 * seen[0]
    predicted = coverage(masking, "targets").mean(dim=(1, 2))
    assert (predicted.diff() <= 1e-12).all()
    assert predicted[-1] < 0.8 * predicted[0]


@pytest.mark.parametrize("sampler", ["faithful", "corrected"])
@pytest.mark.parametrize("masking", KINDS)
def test_nothing_that_is_seen_is_predicted(masking: TubeMasking, sampler: Any) -> None:
    for step in range(10):
        context, targets = draw(replace(masking, sampler=sampler), range(16), step)
        assert (context.diff(dim=1) > 0).all()
        assert (targets.diff(dim=1) > 0).all()
        for seen, asked in zip(context.tolist(), targets.tolist(), strict=True):
            assert not set(seen) & set(asked)


@pytest.mark.parametrize("sampler", ["faithful", "corrected"])
@pytest.mark.parametrize("masking", KINDS)
def test_a_single_clip_loses_nothing(masking: TubeMasking, sampler: Any) -> None:
    context, targets = draw(replace(masking, sampler=sampler), range(1), batch=1)
    assert sorted(context[0].tolist() + targets[0].tolist()) == list(range(math.prod(GRID)))
    frames = targets[0].view(8, -1)
    assert torch.equal(frames - frames[:, :1], (frames[:1] - frames[0, 0]).expand(8, -1))  # the same in all frames


def test_corrected_masks_are_tubes_of_what_the_blocks_say() -> None:
    masking = replace(SHORT, sampler="corrected")
    hidden = masking.hidden(Random(5, 3, range(16)), 16, (14, 14))
    context, targets = draw(masking, range(16), 3)
    for places, allowed in ((context, ~hidden), (targets, hidden)):
        frames = places.view(16, 8, -1)
        assert torch.equal(frames - 196 * torch.arange(8).view(1, -1, 1), frames[:, :1].expand(-1, 8, -1))
        assert allowed.gather(1, frames[:, 0]).all()
        assert frames.shape[2] == int(allowed.sum(dim=1).min())


@pytest.mark.parametrize("sampler", ["faithful", "corrected"])
@pytest.mark.parametrize("masking", KINDS)
def test_rows_are_drawn_from_the_step_and_their_place_alone(masking: TubeMasking, sampler: Any) -> None:
    masking = replace(masking, sampler=sampler, group=6)
    whole = draw(masking, range(16))
    parts = [draw(masking, range(first, first + 4)) for first in range(0, 16, 4)]
    for name in ("context", "targets"):
        masks = getattr(whole, name)
        assert torch.equal(masks, torch.cat([getattr(part, name) for part in parts]))
        assert torch.equal(masks[7:8], getattr(draw(masking, range(7, 8)), name))
        other = getattr(draw(masking, range(16), step=1), name)
        assert other.shape != masks.shape or not torch.equal(other, masks)
        assert len(masks.unique(dim=0)) > 8
        assert (masks.dtype, masks.device.type) == (torch.int64, "cpu")


@pytest.mark.parametrize("sampler", ["faithful", "corrected"])
@pytest.mark.parametrize("masking", KINDS)
@pytest.mark.parametrize("grid", [(4, 4, 4), (1, 4, 4), (4, 6, 6), (2, 3, 8)])
def test_on_small_grids_something_is_seen_and_something_predicted(
    masking: TubeMasking, grid: tuple[int, int, int], sampler: Any
) -> None:
    masking = replace(masking, sampler=sampler)
    masking.check(grid[1:])
    for step in range(30):
        context, targets = draw(masking, range(32), step, 32, grid)
        assert context.shape[1] >= grid[0]
        assert targets.shape[1] >= grid[0]
        assert context.shape[1] % grid[0] == targets.shape[1] % grid[0] == 0


def test_blocks_that_leave_nothing_are_drawn_again_and_at_last_only_one_is_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 4 x 3 patches of 4 x 4: left, right or both.
    masking = TubeMasking(blocks=2, scale=0.7, aspect=(1.2, 1.2), group=400)

    def hidden(tries: int) -> Tensor:
        monkeypatch.setattr(tubes, "TRIES", tries)
        return masking.hidden(Random(5, 0, range(400)), 400, (4, 4))

    first = Random(5, 0, range(400)).uniform("place0", 2, 2)[:, :, 1] >= 0.5
    both = first[:, 0] != first[:, 1]
    assert 0.4 < both.double().mean() < 0.6
    once, often = hidden(1), hidden(20)
    assert once.sum(dim=1).tolist() == often.sum(dim=1).tolist() == [12] * 400
    columns = once.view(400, 4, 4).all(dim=1)
    assert torch.equal(columns[:, 3], first[:, 0])  # the first block alone
    assert torch.equal(once[~both], often[~both])
    assert 0.3 < often.view(400, 4, 4).all(dim=1)[both][:, 3].double().mean() < 0.7


@pytest.mark.parametrize("masking", KINDS)
def test_large_batches_keep_as_much_as_the_official_batches_of_24(masking: TubeMasking) -> None:
    _, seen, predicted = simulated(masking, 24, 60)
    found: tuple[list[float], list[float]] = ([], [])
    for step in range(60):
        context, targets = draw(masking, range(1), step, 240)
        found[0].append(context.shape[1] / math.prod(GRID))
        found[1].append(targets.shape[1] / math.prod(GRID))
    for ours, official in zip(found, (seen, predicted), strict=True):
        error = math.sqrt((np.var(ours) + np.var(official)) / 60)
        assert abs(np.mean(ours) - np.mean(official)) < 4 * error
    assert np.mean(found[0]) > 1.1 * np.mean(simulated(masking, 240, 10)[1])  # of a whole batch less would be left


@pytest.mark.parametrize("masking", KINDS)
def test_the_leading_group_decides_and_others_draw_again(masking: TubeMasking) -> None:
    again = 0
    for step in range(10):
        free = replace(masking, group=200).hidden(Random(5, step, range(200)), 200, (14, 14))
        hidden = replace(masking, group=10).hidden(Random(5, step, range(200)), 200, (14, 14))
        fewest, most = (int(end) for end in torch.aminmax(free[:10].sum(dim=1)))
        counts = free.sum(dim=1)
        suitable = (counts >= fewest) & (counts <= most)
        assert suitable[:10].all()
        assert torch.equal(hidden[suitable], free[suitable])
        assert ((hidden.sum(dim=1) >= fewest) & (hidden.sum(dim=1) <= most)).all()
        assert (hidden[~suitable] != free[~suitable]).any(dim=1).all()
        again += int((~suitable).sum())
    assert again > 100


def test_what_never_suits_takes_over_a_mask_of_the_leading_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tubes, "TRIES", 1)
    free = replace(SHORT, group=50).hidden(Random(5, 0, range(50)), 50, (14, 14))
    hidden = replace(SHORT, group=3).hidden(Random(5, 0, range(50)), 50, (14, 14))
    fewest, most = (int(end) for end in torch.aminmax(free[:3].sum(dim=1)))
    taken = 0
    for row, (mask, own) in enumerate(zip(hidden, free, strict=True)):
        if fewest <= int(own.sum()) <= most:
            assert torch.equal(mask, own)
        else:
            assert torch.equal(mask, free[row % 3])
            taken += 1
    assert taken > 5


@pytest.mark.parametrize(
    ("masking", "size", "said"),
    [
        (SHORT, (2, 2), r"a block of 0\.15 of 2 x 2 patches may be smaller than a patch"),
        (SHORT, (3, 2), "may be smaller than a patch"),
        (TubeMasking(blocks=1, scale=0.9), (4, 4), r"a block of 0\.9 of 4 x 4 patches may hide a whole frame"),
        (TubeMasking(blocks=1, scale=0.75, aspect=(0.5, 2.0)), (2, 2), "may hide a whole frame"),
    ],
)
def test_grids_that_cannot_be_masked_are_refused(masking: TubeMasking, size: tuple[int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        masking.check(size)


@pytest.mark.parametrize("size", list(itertools.product(range(1, 9), range(1, 9))))
@pytest.mark.parametrize("scale", [0.15, 0.5, 0.7, 0.9])
def test_a_grid_is_refused_exactly_if_some_aspect_makes_an_impossible_block(
    size: tuple[int, int], scale: float
) -> None:
    masking = TubeMasking(blocks=1, scale=scale)
    sizes = [official_size(masking, draw / 400, size) for draw in range(401)]
    impossible = any(min(block) < 1 or block == size for block in sizes)
    if impossible:
        with pytest.raises(ValueError, match="a block of"):
            masking.check(size)
    else:
        masking.check(size)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"blocks": 0}, "blocks is 0"),
        ({"group": 0}, "group is 0"),
        ({"scale": 0.0}, r"scale is 0\.0"),
        ({"scale": 1.0}, r"scale is 1\.0"),
        ({"aspect": (0.0, 1.0)}, "aspect is"),
        ({"aspect": (2.0, 1.0)}, "aspect is"),
    ],
)
def test_numbers_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TubeMasking(**{"blocks": 2, "scale": 0.5, **bad})
