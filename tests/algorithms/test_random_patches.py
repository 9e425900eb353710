from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from heliostat_algorithms.masking.random_patches import kept_patches, random_patches
from heliostat_algorithms.randomness import Random


def draw(rows: range, patches: int, ratio: float, seed: int = 5, step: int = 3) -> tuple[Tensor, Tensor]:
    return random_patches(Random(seed, step, rows), patches, ratio)


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"),
    [(196, 0.75, 49), (49, 0.75, 12), (64, 0.6, 25), (16, 0.5, 8), (10, 0.75, 2), (2, 0.5, 1), (4, 0.01, 3)],
)
def test_every_image_keeps_the_same_number_and_each_patch_is_on_one_side(patches: int, ratio: float, kept: int) -> None:
    visible, hidden = draw(range(7), patches, ratio)
    assert visible.shape == (7, kept)
    assert hidden.shape == (7, patches - kept)
    assert visible.dtype == hidden.dtype == torch.int64
    for row in torch.cat([visible, hidden], dim=1).tolist():
        assert sorted(row) == list(range(patches))
    assert kept_patches(patches, ratio) == kept


def p_value(counts: Tensor) -> float:
    """Of the hypothesis that all cells are equally likely."""
    expected = counts.double().mean()
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return float(chi2.sf(statistic, counts.numel() - 1))


def test_all_subsets_are_equally_likely_and_rows_independent() -> None:
    visible, _ = draw(range(20_000), 5, 0.6)
    subsets = {subset: number for number, subset in enumerate(itertools.combinations(range(5), 2))}

    def numbers(pairs: Tensor) -> Tensor:
        return torch.tensor([subsets[min(pair), max(pair)] for pair in pairs.tolist()])

    found = numbers(visible)
    assert p_value(torch.bincount(found, minlength=10)) > 1e-3
    neighbours = found[0::2] * 10 + found[1::2]
    assert p_value(torch.bincount(neighbours, minlength=100)) > 1e-3
    steps = found * 10 + numbers(draw(range(20_000), 5, 0.6, step=4)[0])
    assert p_value(torch.bincount(steps, minlength=100)) > 1e-3


def test_places_are_uniform_where_an_image_has_many() -> None:
    rows, patches, kept = 3_000, 49, 12
    visible, _ = draw(range(rows), patches, 0.75)
    counts = torch.bincount(visible.flatten(), minlength=patches).double()
    share = kept / patches
    # Draws without replacement: the counts of a row sum to 12, which leaves 48 degrees of freedom.
    variance = rows * share * (1 - share)
    statistic = ((counts - rows * share) ** 2).sum() / variance * (patches - 1) / patches
    assert chi2.sf(statistic.item(), patches - 1) > 1e-3


def test_a_row_does_not_depend_on_who_draws_it() -> None:
    visible, hidden = draw(range(12), 16, 0.75)
    for workers in (2, 3, 4):
        size = 12 // workers
        parts = [draw(range(first, first + size), 16, 0.75) for first in range(0, 12, size)]
        assert torch.equal(torch.cat([part[0] for part in parts]), visible)
        assert torch.equal(torch.cat([part[1] for part in parts]), hidden)


def test_seed_step_and_scope_give_other_masks() -> None:
    visible, _ = draw(range(12), 16, 0.75)
    assert not torch.equal(draw(range(12), 16, 0.75, seed=6)[0], visible)
    assert not torch.equal(draw(range(12), 16, 0.75, step=4)[0], visible)
    assert not torch.equal(random_patches(Random(5, 3, range(12)).within("other"), 16, 0.75)[0], visible)
    assert len({tuple(sorted(row)) for row in visible.tolist()}) > 6


def test_draws_are_on_the_cpu_whatever_the_device() -> None:
    visible, hidden = random_patches(Random(5, 3, range(4), "meta"), 16, 0.75)
    assert visible.device.type == hidden.device.type == "cpu"
    assert torch.equal(visible, draw(range(4), 16, 0.75)[0])


@pytest.mark.parametrize(("patches", "ratio", "said"), [(3, 0.75, "visible"), (1, 0.5, "visible"), (16, 0.0, "hidden")])
def test_a_mask_that_leaves_nothing_is_refused(patches: int, ratio: float, said: str) -> None:
    with pytest.raises(ValueError, match=f"none of an image's {patches} patches is {said}"):
        draw(range(2), patches, ratio)
