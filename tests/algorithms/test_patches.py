from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from heliostat_algorithms.objectives.patches import (
    masked_reconstruction,
    normalize_patches,
    patchify,
    select,
    unpatchify,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_hold_their_pixels_row_by_row_with_channels_together(channels: int) -> None:
    images = random(2, channels, 6, 9)
    patches = patchify(images, 3)
    assert patches.shape == (2, 6, 9 * channels)
    for b in range(2):
        for y in range(6):
            for x in range(9):
                for c in range(channels):
                    place, value = (y // 3) * 3 + x // 3, ((y % 3) * 3 + x % 3) * channels + c
                    assert patches[b, place, value] == images[b, c, y, x]
    assert torch.equal(unpatchify(patches, (2, 3), channels), images)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="patches of 4 pixels do not divide images of 6 x 8"):
        patchify(random(1, 3, 6, 8), 4)
    patches = patchify(random(1, 3, 6, 9), 3)
    with pytest.raises(ValueError, match="6 patches of 27 values"):
        unpatchify(patches, (2, 2), 3)
    with pytest.raises(ValueError, match="with 2 channels"):
        unpatchify(patches, (2, 3), 2)


def test_each_row_selects_places_of_its_own() -> None:
    patches, places = random(2, 4, 3), torch.tensor([[3, 0], [1, 1]])
    found = select(patches, places)
    assert found.shape == (2, 2, 3)
    for b, row in enumerate(places.tolist()):
        for t, place in enumerate(row):
            assert torch.equal(found[b, t], patches[b, place])


def normalized(patch: list[float]) -> tuple[list[float], float, float]:
    """By the formula, with the unbiased variance."""
    mean = sum(patch) / len(patch)
    variance = sum((value - mean) ** 2 for value in patch) / (len(patch) - 1)
    deviation = math.sqrt(variance + 1e-6)
    return [(value - mean) / deviation for value in patch], mean, deviation


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_patches_are_normalised_with_the_unbiased_variance(scale: float) -> None:
    patches = random(2, 3, 5) * scale + 7
    values, means, deviations = normalize_patches(patches)
    for b in range(2):
        for n in range(3):
            expected, mean, deviation = normalized(patches[b, n].tolist())
            np.testing.assert_allclose(values[b, n].numpy(), expected, rtol=1e-9, atol=1e-12)
            assert means[b, n].item() == pytest.approx(mean, rel=1e-12)
            assert deviations[b, n].item() == pytest.approx(deviation, rel=1e-9)
    torch.testing.assert_close(values * deviations + means, patches, rtol=1e-12, atol=1e-12)


def test_a_plain_patch_becomes_zero() -> None:
    values, mean, deviation = normalize_patches(torch.full((1, 1, 12), 0.7, dtype=torch.float64))
    assert values.abs().max().item() < 1e-12
    assert mean.item() == pytest.approx(0.7)
    assert deviation.item() == pytest.approx(1e-3)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_counts_hidden_patches_alone(normalize: bool) -> None:
    B, N, D, T = 3, 6, 5, 4
    patches, everywhere = random(B, N, D), random(B, N, D, seed=1)  # what a decoder says of all patches
    hidden = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(b))[:T] for b in range(B)])
    total = count = 0.0
    for b in range(B):
        for n in range(N):
            target = patches[b, n].tolist()
            if normalize:
                target, _, _ = normalized(target)
            error = sum((p - t) ** 2 for p, t in zip(everywhere[b, n].tolist(), target, strict=True)) / D
            mask = float(n in hidden[b].tolist())
            total += mask * error
            count += mask
    loss = masked_reconstruction(select(everywhere, hidden), patches, hidden, normalize)
    assert loss.item() == pytest.approx(total / count, rel=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    predictions, patches, hidden = random(2, 2, 3), random(2, 4, 3, seed=1), torch.tensor([[1, 3], [0, 2]])
    predictions.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: masked_reconstruction(p, patches, hidden), (predictions,))


def test_to_say_nothing_costs_the_variance() -> None:
    patches = random(4, 6, 48)
    hidden = torch.arange(6).expand(4, -1)
    nothing = torch.zeros(4, 6, 48, dtype=torch.float64)
    assert masked_reconstruction(nothing, patches, hidden).item() == pytest.approx(47 / 48, rel=1e-4)
    means = patches.mean(dim=2, keepdim=True).expand_as(patches)
    biased = ((patches - means) ** 2).mean().item()
    assert masked_reconstruction(means, patches, hidden, normalize=False).item() == pytest.approx(biased)


def test_errors_are_float32_under_autocast() -> None:
    patches, hidden = random(4, 6, 48).float(), torch.arange(3).expand(4, -1)
    predictions = random(4, 3, 48, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = masked_reconstruction(predictions, patches, hidden)
    assert loss.dtype == torch.float32
    exact = masked_reconstruction(predictions.double(), patches.double(), hidden)
    assert exact.dtype == torch.float64
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
