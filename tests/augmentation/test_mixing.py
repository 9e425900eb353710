"""Mixup and CutMix: shares, boxes, partners."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from heliostat_algorithms.augmentation.mixing import Mix, Mixing, beta, boxes
from heliostat_algorithms.collectives import rank, world_size
from heliostat_algorithms.randomness import Random

Pictures = Callable[..., Tensor]
MANY = 20_000
BATCH = 12


def rows(count: int = BATCH, step: int = 0) -> Random:
    return Random(7, step, range(count))


class Given(Random):
    """Uniform numbers that somebody chose."""

    def __init__(self, *pairs: tuple[float, float]) -> None:
        super().__init__(0, 0, range(len(pairs)))
        self.pairs = pairs

    def uniform(self, stream: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.tensor(self.pairs, dtype=torch.float32)


# Beta


@pytest.mark.parametrize("alpha", [0.2, 0.4, 0.8, 1.0, 2.5, 30.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    found = beta(rows(MANY), "mixup", alpha)
    assert found.dtype == torch.float64
    assert scipy.stats.kstest(found.numpy(), scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_shares_come_from_student_s_t() -> None:
    pairs, alpha = [(0.3, 0.1), (0.75, 0.45), (0.01, 0.8), (0.99, 0.6)], 0.8
    found = beta(Given(*pairs), "mixup", alpha)
    for (u, v), share in zip(pairs, found.tolist(), strict=True):
        t = math.sqrt(2 * alpha * (u ** (-1 / alpha) - 1)) * math.cos(2 * math.pi * v)
        assert share == pytest.approx(0.5 * (1 + t / math.sqrt(2 * alpha + t * t)), abs=1e-6)


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 1e6])
def test_extreme_draws_stay_in_range(alpha: float) -> None:
    extremes = [(u, v) for u in (0.0, 2.0**-24, 1 - 2.0**-24) for v in (0.0, 0.25, 0.5, 0.75, 1 - 2.0**-24)]
    found = beta(Given(*extremes), "mixup", alpha)
    assert bool(((found >= 0) & (found <= 1)).all()), found


def test_shares_of_the_two_ways_are_independent() -> None:
    random = rows(MANY)
    assert abs(np.corrcoef(beta(random, "mixup", 1.0), beta(random, "cutmix", 1.0))[0, 1]) < 0.03


# Boxes


@pytest.mark.parametrize("size", [(16, 16), (9, 30), (1, 1)])
def test_boxes_are_those_of_the_official_rule(size: tuple[int, int]) -> None:
    random, (height, width) = rows(300), size
    shares = np.linspace(0, 1, 300)
    found = boxes(random, torch.tensor(shares), size)
    centres = random.integers("box/row", height).tolist(), random.integers("box/column", width).tolist()
    for share, y, x, box in zip(shares, *centres, found.tolist(), strict=True):
        tall, wide = int(height * np.sqrt(1 - share)), int(width * np.sqrt(1 - share))
        top, bottom = (int(np.clip(edge, 0, height)) for edge in (y - tall // 2, y + tall // 2))
        left, right = (int(np.clip(edge, 0, width)) for edge in (x - wide // 2, x + wide // 2))
        assert box == [top, left, bottom, right]


def test_centres_of_boxes_are_uniform_over_the_pixels() -> None:
    share = torch.full((MANY,), 1 - (2.1 / 6) ** 2, dtype=torch.float64)  # sides of 2: one before the centre, and it
    found = boxes(rows(MANY), share, (6, 6))
    for last in (2, 3):
        centres = np.bincount((found[:, last] - 1).numpy(), minlength=6)
        assert scipy.stats.chisquare(centres).pvalue > 0.01
    assert abs(np.corrcoef(found[:, 2], found[:, 3])[0, 1]) < 0.03


# Which samples, and by what


def kinds(mix: Mix) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are mixed by mixup, by a box that is not empty, or not at all."""
    blended = mix.blend != 1
    cut = (mix.box[:, 2] > mix.box[:, 0]) & (mix.box[:, 3] > mix.box[:, 1])
    return blended, cut, ~(blended | cut)


def test_shares_of_mixup_are_those_of_its_beta() -> None:
    mix = Mixing(mixup=0.4).draw(rows(MANY), MANY, (8, 8))
    blended, cut, _ = kinds(mix)
    assert bool(blended.all())
    assert not bool(cut.any())
    assert torch.equal(mix.share, mix.blend)
    assert scipy.stats.kstest(mix.share.numpy(), scipy.stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_probability_and_switch_decide_how_many() -> None:
    mix = Mixing(mixup=0.8, cutmix=1.0, probability=0.6, switch=0.25).draw(rows(MANY), MANY, (1000, 1000))
    blended, cut, untouched = (each.double().mean().item() for each in kinds(mix))
    assert blended == pytest.approx(0.6 * 0.75, abs=0.015)
    assert cut == pytest.approx(0.6 * 0.25, abs=0.015)  # boxes of 1000 x 1000 pixels are hardly ever empty
    assert untouched == pytest.approx(0.4, abs=0.015)
    both = kinds(mix)[0] & kinds(mix)[1]
    assert not bool(both.any())


@pytest.mark.parametrize("switch", [0.0, 1.0])
def test_switch_means_nothing_where_only_one_is_on(switch: float) -> None:
    blended, cut, _ = kinds(Mixing(mixup=1.0, switch=switch).draw(rows(200), 200, (64, 64)))
    assert bool(blended.all())
    assert not bool(cut.any())
    blended, cut, _ = kinds(Mixing(cutmix=1.0, switch=switch).draw(rows(200), 200, (64, 64)))
    assert not bool(blended.any())
    assert cut.double().mean() > 0.9


def test_only_what_is_asked_for_is_active() -> None:
    assert not Mixing().active
    assert not Mixing(mixup=0.8, cutmix=1.0, probability=0.0).active
    assert Mixing(mixup=0.8).active
    assert Mixing(cutmix=1.0).active


# Partners


def test_partners_are_a_permutation_of_the_global_batch() -> None:
    mixing = Mixing(mixup=1.0)
    whole = mixing.draw(rows(40), 40, (8, 8))
    assert sorted(whole.partner.tolist()) == list(range(40))
    assert whole.partner.tolist() != list(range(40))
    assert whole.partner.tolist() != mixing.draw(rows(40, step=1), 40, (8, 8)).partner.tolist()
    for workers in (2, 4):
        size = 40 // workers
        parts = [mixing.draw(Random(7, 0, range(at, at + size)), 40, (8, 8)) for at in range(0, 40, size)]
        for number, name in enumerate(Mix._fields):
            assert torch.equal(torch.cat([part[number] for part in parts]), whole[number]), name


# Samples


@pytest.mark.parametrize(
    "options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "probability": 0.8}]
)
def test_samples_are_those_of_the_papers_formulas(options: dict[str, float], pictures: Pictures) -> None:
    mixing, images, labels = Mixing(**options), pictures(BATCH, 3, 10, 14), torch.arange(BATCH) % 5
    made = mixing(images, labels, rows(), BATCH)
    mix = mixing.draw(rows(), BATCH, (10, 14))
    x, kinds_seen = images.numpy(), set()
    for i in range(BATCH):
        j, blend = int(mix.partner[i]), float(np.float32(mix.blend[i]))
        top, left, bottom, right = mix.box[i].tolist()
        expected = blend * x[i] + (1 - blend) * x[j]
        expected[:, top:bottom, left:right] = x[j][:, top:bottom, left:right]
        np.testing.assert_allclose(made.images[i].numpy(), expected, rtol=0, atol=1e-15)
        assert made.partner_label[i] == labels[j]
        # The label has the share of the image: that of the pixels which are the own image's.
        covered = (bottom - top) * (right - left) / 140
        assert made.share[i].item() == pytest.approx(1 - covered if covered else blend, abs=1e-7)
        kinds_seen.add("cut" if covered else "whole" if blend == 1 else "blend")
    assert kinds_seen >= {"blend"} if "mixup" in options else {"cut"}


def test_the_label_s_share_is_that_of_the_pixels() -> None:
    """Own images are 1, partners' 0, row by row: what is left of 1 is the share."""
    for options in ({"mixup": 0.8}, {"cutmix": 1.0}):
        for row in range(4):
            images = torch.zeros(BATCH, 1, 9, 7)
            images[row] = 1.0
            made = Mixing(**options)(images, torch.zeros(BATCH, dtype=torch.int64), rows(step=row), BATCH)
            if Mixing(**options).draw(rows(step=row), BATCH, (9, 7)).partner[row] == row:
                continue
            assert made.images[row].mean().item() == pytest.approx(made.share[row].item(), abs=1e-6)


def test_what_is_not_mixed_keeps_its_bits_and_no_argument_is_changed(pictures: Pictures) -> None:
    images, labels = pictures(BATCH, 3, 8, 8, torch.float32), torch.arange(BATCH)
    before = images.clone()
    made = Mixing(mixup=1.0, cutmix=1.0, probability=0.5)(images, labels, rows(), BATCH)
    assert torch.equal(images, before)
    alone = made.share == 1
    assert 0 < int(alone.sum()) < BATCH
    assert torch.equal(made.images[alone], images[alone])
    cut = Mixing(cutmix=1.0)
    mix, pasted = cut.draw(rows(), BATCH, (8, 8)), cut(images, labels, rows(), BATCH).images
    partners = images[mix.partner]
    assert bool(((pasted == images) | (pasted == partners)).all())


def test_a_part_of_the_batch_is_refused(pictures: Pictures) -> None:
    with pytest.raises(ValueError, match="a batch of 24, but 12 samples are here"):
        Mixing(mixup=1.0)(pictures(BATCH, 3, 8, 8), torch.arange(BATCH), rows(), 24)


def mixed_here() -> dict[str, Any]:
    """This worker's rows of a batch that all know."""
    images = torch.rand(BATCH, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    size = BATCH // world_size()
    mine = range(rank() * size, (rank() + 1) * size)
    mixing = Mixing(mixup=0.8, cutmix=1.0)
    made = mixing(
        images[mine.start : mine.stop], torch.arange(BATCH)[mine.start : mine.stop], Random(7, 0, mine), BATCH
    )
    return made._asdict()


def test_partners_lie_on_other_workers(on_workers: Any) -> None:
    alone = mixed_here()
    results = on_workers(mixed_here, 2)
    for name, expected in alone.items():
        assert torch.equal(torch.cat([result[name] for result in results]), expected), name
    assert bool((alone["partner_label"][:6] >= 6).any())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"mixup": -0.1}, "mixup is -0.1"),
        ({"mixup": math.inf}, "mixup is inf"),
        ({"cutmix": math.nan}, "cutmix is nan"),
        ({"probability": 1.1}, "probability is 1.1"),
        ({"switch": -0.5}, "switch is -0.5"),
    ],
)
def test_numbers_out_of_range_are_refused(bad: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixing(**bad)
