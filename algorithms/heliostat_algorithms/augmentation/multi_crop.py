"""Multi-crop: two large views of each image and several small ones (SwAV, Caron et al. 2020, arXiv 2006.09882, section
3.3; used by DINO and DINOv2)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from heliostat_algorithms.augmentation.color import ColorJitter
from heliostat_algorithms.augmentation.filters import GaussianBlur
from heliostat_algorithms.augmentation.views import ViewAugmentation
from heliostat_algorithms.randomness import Random

GLOBAL_AREA = (0.4, 1.0)
"""Shares of the image that DINO's global crops cover; its code advises (0.14, 1) without local crops."""
LOCAL_AREA = (0.05, 0.4)
"""Shares that its local crops cover."""


def dino_jitter() -> ColorJitter:
    """DINO's colour jitter: that of BYOL."""
    return ColorJitter(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)


def _first_global() -> ViewAugmentation:
    blur = GaussianBlur(probability=1.0)
    return ViewAugmentation(size=224, crop_area=GLOBAL_AREA, jitter=dino_jitter(), blur=blur)


def _second_global() -> ViewAugmentation:
    blur = GaussianBlur(probability=0.1)
    return ViewAugmentation(size=224, crop_area=GLOBAL_AREA, jitter=dino_jitter(), blur=blur, solarize=0.2)


def _local() -> ViewAugmentation:
    # The official code blurs with Pillow, whose Gaussian is not cut off; a tenth of 96 pixels would end at 2 sigma.
    blur = GaussianBlur(probability=0.5, kernel=0.2)
    return ViewAugmentation(size=96, crop_area=LOCAL_AREA, jitter=dino_jitter(), blur=blur)


@dataclass(frozen=True, kw_only=True)
class MultiCrop:
    """How crops are made; the defaults are DINO's for ImageNet. For small images give each view a smaller ``size``."""

    first_global: ViewAugmentation = field(default_factory=_first_global)
    """The first large crop: always blurred."""
    second_global: ViewAugmentation = field(default_factory=_second_global)
    """The second large crop, of the same size: rarely blurred, sometimes solarised."""
    local: ViewAugmentation = field(default_factory=_local)
    """All small crops."""
    local_crops: int = 8
    """Small crops of each image; 0 for two large ones alone, then with a crop_area of (0.14, 1)."""

    def __post_init__(self) -> None:
        if self.local_crops < 0:
            raise ValueError(f"local_crops is {self.local_crops}; it must be 0 or more")
        if self.first_global.size != self.second_global.size:
            raise ValueError(
                f"the global crops have sizes {self.first_global.size} and {self.second_global.size}; they pass the "
                "network together and must be of one size"
            )

    def __call__(self, images: Tensor, random: Random) -> tuple[Tensor, Tensor | None]:
        """All crops of each image, ordered by crop: first those of all images by one crop, then by the next.

        Args:
            images: (B, C, H, W) with one or three channels: uint8, or floating in [0, 1].
            random: draws for these B rows of the global batch.

        Returns:
            Global crops (2 * B, C, S, S), and local crops (local_crops * B, C, s, s) or None where there are none; both
            in [0, 1].

        Raises:
            ValueError: the images do not suit ``ViewAugmentation``.
        """
        first = self.first_global(images, random.within("global0"))
        second = self.second_global(images, random.within("global1"))
        local = [self.local(images, random.within(f"local{number}")) for number in range(self.local_crops)]
        return torch.cat([first, second]), torch.cat(local) if local else None
