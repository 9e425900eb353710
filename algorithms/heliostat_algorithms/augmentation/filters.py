"""Gaussian blur with one width per sample, and solarisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heliostat_algorithms.augmentation.resampling import Taps, combine
from heliostat_algorithms.randomness import Random


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Convolve each image with a Gaussian of its own, cut off at the kernel and normalised; borders are reflected.

    Args:
        images: (B, C, H, W) floating, in [0, 1].
        sigma: (B,) standard deviations in pixels, positive.
        kernel_size: pixels across, odd, below twice the image's shorter side.

    Returns:
        (B, C, H, W), a tensor of its own.

    Raises:
        ValueError: the kernel is even, or too large to be reflected.
    """
    H, W = images.shape[2:]
    radius = kernel_size // 2
    if kernel_size % 2 == 0 or not 0 <= radius < min(H, W):
        raise ValueError(
            f"A blur of {kernel_size} pixels does not suit images of {H} x {W}: "
            f"it must be odd and at most {2 * min(H, W) - 1}, so that the border can be reflected."
        )
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=torch.float64)
    weight = torch.exp(-0.5 * (offset / sigma.double().view(-1, 1)) ** 2)
    weights = (weight / weight.sum(1, keepdim=True))[:, None]  # (B, 1, K)
    rows, columns = (_reflected(weights, size, radius).to(images) for size in (H, W))
    return combine(images, rows, columns)


def _reflected(weights: Tensor, size: int, radius: int) -> Taps:
    """Taps of a convolution along ``size`` pixels; pixel -1 is pixel 1, pixel ``size`` is pixel ``size - 2``."""
    device = weights.device
    position = torch.arange(size, device=device)[:, None] + torch.arange(-radius, radius + 1, device=device)
    rows = (size - 1) - (position.abs() - (size - 1)).abs()
    shape = (len(weights), size, 2 * radius + 1)
    return Taps(rows.expand(shape), weights.expand(shape))


def solarize(images: Tensor, threshold: float) -> Tensor:
    """(B, C, H, W) -> the same with pixels from the threshold on inverted, ``1 - x``; a tensor of its own."""
    return torch.where(images >= threshold, 1 - images, images)


@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Random blur (SimCLR, appendix A)."""

    probability: float = 0.5
    """Share of the samples that are blurred. SimCLR does not blur CIFAR's small images: 0."""
    sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation in pixels; drawn uniformly."""
    kernel: float = 0.1
    """The kernel's share of the image's shorter side; see ``kernel_size``."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"The probability of blur is {self.probability}; it must be from 0 to 1.")
        if not 0 < self.sigma[0] <= self.sigma[1] < float("inf"):
            raise ValueError(f"The blur's sigma is {self.sigma}; it must be two positive numbers, the smaller first.")
        if not 0 < self.kernel <= 1:
            raise ValueError(f"The blur's kernel is {self.kernel} of the image; it must be above 0 and at most 1.")

    def kernel_size(self, size: int) -> int:
        """Pixels across for an image whose shorter side is ``size``: 2 * floor(share * size / 2) + 1, and at least 3.

        23 for 224 pixels and 3 for 32, as in SimCLR's code. That code would use 1, no blur, below 20 pixels.
        """
        return 2 * max(1, int(self.kernel * size / 2)) + 1

    def draw(self, random: Random) -> tuple[Tensor, Tensor]:
        """Which samples are blurred, bool (B,), and their standard deviations (B,) in pixels."""
        apply = random.bernoulli("blur/apply", self.probability)
        return apply, random.uniform("blur/sigma", low=self.sigma[0], high=self.sigma[1])
