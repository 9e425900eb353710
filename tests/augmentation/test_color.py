from __future__ import annotations

import colorsys
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy import stats
from torch import Tensor

from heliostat_algorithms.augmentation import (
    ColorJitter,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
    to_greyscale,
)
from heliostat_algorithms.randomness import Random

Pictures = Callable[..., Tensor]


def grey(image: np.ndarray) -> np.ndarray:
    return 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]


def hue_by_pixel(image: np.ndarray, shift: float) -> np.ndarray:
    out = np.empty_like(image)
    for y, x in np.ndindex(image.shape[1:]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[:, y, x])
        out[:, y, x] = colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)
    return out


def one_operation(image: np.ndarray, operation: int, factor: float) -> np.ndarray:
    """The definition, on one image (3, H, W) in float64; operations 0 .. 3: brightness, contrast, saturation, hue."""
    if operation == 3:
        return hue_by_pixel(image, factor)
    other = [0.0, grey(image).mean(), grey(image)][operation]
    return np.clip(factor * image + (1 - factor) * other, 0, 1)


FACTORS = torch.tensor([0.0, 0.3, 1.0, 1.7], dtype=torch.float64)
ADJUST = [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue]


@pytest.mark.parametrize("operation", range(3))
def test_blends_follow_their_definition(pictures: Pictures, operation: int) -> None:
    images = pictures(4, 3, 9, 7)
    before = images.clone()
    ours = ADJUST[operation](images, FACTORS)
    for image, factor, view in zip(images, FACTORS, ours, strict=True):
        np.testing.assert_allclose(view.numpy(), one_operation(image.numpy(), operation, float(factor)), atol=1e-14)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("ours", "enhancer", "tolerance"),
    [
        (adjust_brightness, ImageEnhance.Brightness, 1.0),
        (adjust_contrast, ImageEnhance.Contrast, 1.5),  # Pillow rounds the mean as well
        (adjust_saturation, ImageEnhance.Color, 2.0),  # and every grey level
    ],
)
def test_blends_are_pillows_up_to_its_rounding(ours, enhancer, tolerance: float, pictures: Pictures) -> None:  # type: ignore[no-untyped-def]
    stored = (pictures(4, 3, 24, 24) * 255).round().to(torch.uint8)
    views = ours(stored.double() / 255, FACTORS) * 255
    for image, factor, view in zip(stored, FACTORS, views, strict=True):
        reference = enhancer(Image.fromarray(image.permute(1, 2, 0).numpy())).enhance(float(factor))
        np.testing.assert_allclose(view.permute(1, 2, 0).numpy(), np.asarray(reference, dtype=float), atol=tolerance)


def test_hue_is_that_of_colorsys_at_every_pixel(pictures: Pictures) -> None:
    images = pictures(6, 3, 8, 8)
    levels = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    corners = torch.cartesian_prod(levels, levels, levels)  # greys, pure colours, ties between channels
    images[0, :, :3] = torch.nn.functional.pad(corners.T[:, :24], (0, 0)).view(3, 3, 8)
    images[1, :, 0, :3] = corners.T[:, 24:]
    shift = torch.tensor([-0.5, -0.2, 0.0, 0.1, 1 / 3, 0.5], dtype=torch.float64)
    ours = adjust_hue(images, shift)
    for image, turn, view in zip(images, shift, ours, strict=True):
        np.testing.assert_allclose(view.numpy(), hue_by_pixel(image.numpy(), float(turn)), atol=1e-12)


def test_hue_in_float32_is_as_good_as_float32(pictures: Pictures) -> None:
    images = pictures(5, 3, 16, 16)
    images[:2] *= 1e-3  # dark pixels: small chroma must not lose its hue
    shift = torch.linspace(-0.5, 0.5, 5, dtype=torch.float64)
    exact, ours = adjust_hue(images, shift), adjust_hue(images.float(), shift)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, atol=1e-6, rtol=0)


def test_grey_pixels_keep_their_hue_and_stay_finite() -> None:
    images = torch.linspace(0, 1, 48).view(1, 1, 6, 8).expand(1, 3, 6, 8)
    assert torch.equal(adjust_hue(images, torch.tensor([0.3])), images)


def test_greyscale_is_itu_601(pictures: Pictures) -> None:
    images = pictures(2, 3, 6, 6)
    ours = to_greyscale(images)
    for image, view in zip(images, ours, strict=True):
        for channel in view:
            np.testing.assert_allclose(channel.numpy(), grey(image.numpy()), atol=1e-15)
    stored = (images * 255).round().to(torch.uint8)
    pillow = np.asarray(Image.fromarray(stored[0].permute(1, 2, 0).numpy()).convert("L"), dtype=float)
    np.testing.assert_allclose(to_greyscale(stored.double())[0, 0].numpy(), pillow, atol=1.0)


def test_jitter_applies_each_order_as_one_operation_after_another(pictures: Pictures) -> None:
    """All 24 orders at once, with factors that make most operations clip."""
    order = torch.tensor(list(itertools.permutations(range(4))))
    images = pictures(24, 3, 5, 6)
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(24, 4, generator=generator, dtype=torch.float64) * 2
    factors[:, 3] = factors[:, 3] / 2 - 0.5
    before = images.clone()
    ours = color_jitter(images, factors, order)
    assert torch.equal(images, before)
    clipped = 0
    for image, factor, sequence, view in zip(images.numpy(), factors.numpy(), order.tolist(), ours, strict=True):
        expected = image
        for operation in sequence:
            expected = one_operation(expected, operation, factor[operation])
            clipped += int((expected == 1).sum())
        np.testing.assert_allclose(view.numpy(), expected, atol=1e-12)
    assert clipped > 100


def test_one_channel_has_brightness_and_contrast_only(pictures: Pictures) -> None:
    images = pictures(24, 1, 5, 6)
    order = torch.tensor(list(itertools.permutations(range(4))))
    factors = torch.tensor([[1.3, 0.6, 0.2, 0.4]], dtype=torch.float64).expand(24, 4)
    ours = color_jitter(images, factors, order)
    for image, sequence, view in zip(images.numpy(), order.tolist(), ours, strict=True):
        expected = image[0]
        for operation in sequence:
            if operation == 0:
                expected = np.clip(1.3 * expected, 0, 1)
            elif operation == 1:
                expected = np.clip(0.6 * expected + 0.4 * expected.mean(), 0, 1)
        np.testing.assert_allclose(view[0].numpy(), expected, atol=1e-14)
    half = torch.full((24,), 0.5)
    for identity in (adjust_hue(images, half), adjust_saturation(images, half), to_greyscale(images)):
        assert torch.equal(identity, images)


def test_orders_are_uniform_over_all_permutations() -> None:
    _, _, order = ColorJitter().draw(Random(1, 0, range(24_000)))
    assert torch.equal(order.sort(1).values, torch.arange(4).expand_as(order))
    code = order @ torch.tensor([64, 16, 4, 1])
    counts = torch.unique(code, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_factors_are_uniform_in_their_ranges() -> None:
    jitter = ColorJitter(strength=0.5, brightness=0.8, contrast=4.0, saturation=0.0, hue=0.2)
    apply, factors, _ = jitter.draw(Random(2, 0, range(20_000)))
    assert abs(float(apply.double().mean()) - 0.8) < 0.02
    columns = factors.double().T.numpy()
    assert stats.kstest(columns[0], stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    assert stats.kstest(columns[1], stats.uniform(0.0, 3.0).cdf).pvalue > 1e-3  # 1 - 2 would be below 0
    assert (columns[2] == 1).all()
    assert stats.kstest(columns[3], stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(np.delete(columns, 2, 0)) - np.eye(3)).max() < 0.03


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probability": 1.1}, "probability"),
        ({"probability": float("nan")}, "probability"),
        ({"strength": -1.0}, "strength"),
        ({"contrast": float("inf")}, "contrast"),
        ({"hue": 0.6}, "half a turn"),
        ({"hue": 0.3, "strength": 2.0}, "0.6 turns"),
    ],
)
def test_impossible_jitter_is_refused(change: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ColorJitter(**change)
