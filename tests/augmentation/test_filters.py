from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import ndimage, stats
from torch import Tensor

from heliostat_algorithms.augmentation import GaussianBlur, gaussian_blur, solarize
from heliostat_algorithms.randomness import Random

Pictures = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("height", "width", "kernel_size"), [(32, 32, 3), (20, 31, 7), (12, 40, 23), (5, 5, 9), (6, 4, 1)]
)
def test_blur_is_a_convolution_with_reflected_borders(
    pictures: Pictures, height: int, width: int, kernel_size: int
) -> None:
    images = pictures(5, 3, height, width)
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64)
    ours = gaussian_blur(images, sigma, kernel_size)
    for image, width_in_pixels, view in zip(images.numpy(), sigma.tolist(), ours, strict=True):
        kernel = np.exp(-((np.arange(kernel_size) - kernel_size // 2) ** 2) / (2 * width_in_pixels**2))
        kernel /= kernel.sum()
        expected = ndimage.correlate1d(image, kernel, axis=1, mode="mirror")
        expected = ndimage.correlate1d(expected, kernel, axis=2, mode="mirror")
        np.testing.assert_allclose(view.numpy(), expected, atol=1e-14)


def test_blur_keeps_flat_images_and_the_range(pictures: Pictures) -> None:
    flat = torch.full((2, 1, 16, 16), 0.7)
    torch.testing.assert_close(gaussian_blur(flat, torch.tensor([0.4, 2.0]), 5), flat)
    white = gaussian_blur(torch.ones(64, 3, 24, 24), torch.linspace(0.1, 2, 64), 5)
    assert white.max() <= 1
    images = pictures(8, 3, 16, 16, torch.float32)
    blurred = gaussian_blur(images, torch.full((8,), 1.5), 7)
    assert (blurred.flatten(2).var(2) < 0.5 * images.flatten(2).var(2)).all()


@pytest.mark.parametrize("kernel_size", [2, 0, -1, 17])
def test_impossible_kernels_are_refused(kernel_size: int) -> None:
    with pytest.raises(ValueError, match="odd and at most 15"):
        gaussian_blur(torch.zeros(1, 3, 8, 10), torch.ones(1), kernel_size)


@pytest.mark.parametrize(("size", "expected"), [(224, 23), (96, 9), (32, 3), (28, 3), (8, 3)])
def test_kernel_size_is_a_tenth_of_the_image_made_odd(size: int, expected: int) -> None:
    assert GaussianBlur().kernel_size(size) == expected


def test_sigma_is_uniform() -> None:
    apply, sigma = GaussianBlur(probability=0.3).draw(Random(0, 0, range(20_000)))
    assert abs(float(apply.double().mean()) - 0.3) < 0.02
    assert stats.kstest(sigma.double().numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_solarize_is_pillows() -> None:
    stored = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(stored[0, 0].numpy()), threshold=128), dtype=float)
    ours = solarize(stored.double() / 255, 0.5)[0, 0] * 255
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)
    assert solarize(torch.tensor([[[[0.5, 0.25]]]]), 0.25).flatten().tolist() == [
        0.5,
        0.75,
    ]  # the threshold is inverted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probability": -0.1}, "probability"),
        ({"sigma": (0.0, 1.0)}, "sigma"),
        ({"sigma": (2.0, 1.0)}, "sigma"),
        ({"kernel": 0.0}, "kernel"),
        ({"kernel": 1.5}, "kernel"),
    ],
)
def test_impossible_blur_is_refused(change: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GaussianBlur(**change)  # type: ignore[arg-type]
