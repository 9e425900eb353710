"""Random views: the augmentation of SimCLR and, with other numbers, of MoCo, BYOL, DINO and MAE.

All samples of a batch are augmented together on the training device. The decisions (where to crop, which samples to
blur, in which order to jitter) are a few numbers per sample: they are drawn on the CPU, so that they are the same on
every device and the samples that an operation concerns are known without waiting for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.augmentation.blocks import blocks
from heliostat_algorithms.augmentation.color import ColorJitter, hue_place, jitter_group, to_greyscale
from heliostat_algorithms.augmentation.filters import GaussianBlur, gaussian_blur, solarize
from heliostat_algorithms.augmentation.geometry import crop_boxes, crop_taps
from heliostat_algorithms.augmentation.resampling import combine
from heliostat_algorithms.randomness import Random


@dataclass(frozen=True, kw_only=True)
class ViewAugmentation:
    """Crop, flip, colour jitter, greyscale, blur, solarise, in this order. The defaults are SimCLR's for ImageNet.

    Called with images and random draws for the same rows, it gives one view of each image. For two views of an image
    use ``random.within("first")`` and ``random.within("second")``. Each sample's view depends on its image and its row
    of the global batch alone.
    """

    size: int | None = None
    """Height and width of a view in pixels; None: those of the stored image."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a crop covers."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of a crop's width to its height."""
    flip: float = 0.5
    """Share of the views that are mirrored left to right."""
    jitter: ColorJitter = field(default_factory=ColorJitter)
    """Brightness, contrast, saturation and hue."""
    greyscale: float = 0.2
    """Share of the views without colour."""
    blur: GaussianBlur = field(default_factory=GaussianBlur)
    """Gaussian blur."""
    solarize: float = 0.0
    """Share of the views that are solarised; 0.2 for the second view of BYOL, MoCo v3 and DINO."""
    solarize_threshold: float = 0.5
    """From this value on, of 0 to 1, a solarised pixel is inverted."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"The size of a view is {self.size} pixels; it must be 1 or larger, or absent.")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(
                f"crop_area is {self.crop_area}; it must be two shares above 0 and at most 1, the smaller first."
            )
        if not 0 < self.crop_aspect[0] <= self.crop_aspect[1] < float("inf"):
            raise ValueError(f"crop_aspect is {self.crop_aspect}; it must be two positive ratios, the smaller first.")
        for name in ("flip", "greyscale", "solarize", "solarize_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1.")

    def output_size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a view of images of the ``stored`` (height, width)."""
        return stored if self.size is None else (self.size, self.size)

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]: what probes are shown."""
        x = images.to(torch.float32) / 255
        size = self.output_size((images.shape[2], images.shape[3]))
        if x.shape[2:] == size:
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)

    def __call__(self, images: Tensor, random: Random) -> Tensor:
        """One random view of each image.

        Args:
            images: (B, C, H, W) with one or three channels: uint8, or floating in [0, 1].
            random: draws for these B rows of the global batch; the view is computed on the images' device.

        Returns:
            (B, C, size, size) in [0, 1], a tensor of its own: float64 if the images are, otherwise float32. Saturation,
            hue and greyscale leave images of one channel as they are.

        Raises:
            ValueError: the images have another shape or dtype, or another number than the draws.
        """
        _check(images, random)
        _, channels, H, W = images.shape
        height, width = self.output_size((H, W))
        draws = Random(random.seed, random.step, random.rows, "cpu", random.scope)
        boxes = crop_boxes(draws, H, W, self.crop_area, self.crop_aspect)
        flip = draws.bernoulli("flip", self.flip)
        jittered, factors, order = self.jitter.draw(draws)
        grey = draws.bernoulli("greyscale", self.greyscale if channels == 3 else 0.0)
        blurred, sigma = self.blur.draw(draws)
        solarized = draws.bernoulli("solarize", self.solarize)

        # Samples with the hue at the same place of their order are worked on together (-1: without jitter), those to be
        # blurred last, so that they are a slice and need no gathering.
        place = torch.where(jittered, hue_place(order), -1)
        rows = torch.argsort(2 * place + blurred, stable=True)
        place = place[rows]
        boxes, flip, factors, order, grey, blurred, sigma, solarized = (
            draw[rows] for draw in (boxes, flip, factors, order, grey, blurred, sigma, solarized)
        )
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        views = torch.empty(len(images), channels, height, width, dtype=dtype, device=images.device)
        down, across = (taps.to(views) for taps in crop_taps(boxes, flip, (H, W), (height, width)))
        kernel_size = self.blur.kernel_size(min(height, width))
        for block in blocks(place, channels * max(H * W, height * width), images.device):
            members = rows[block].to(images.device)
            view = combine(_unit_range(images.index_select(0, members), dtype), down[block], across[block])
            if (group := int(place[block.start])) >= 0:
                view = jitter_group(view, factors[block], order[block], group)
            chosen = _positions(grey[block], view)
            if len(chosen):
                view.index_copy_(0, chosen, to_greyscale(view.index_select(0, chosen)))
            sharp = int((~blurred[block]).sum())
            if sharp < len(view):
                view[sharp:] = gaussian_blur(view[sharp:], sigma[block][sharp:], kernel_size)
            chosen = _positions(solarized[block], view)
            if len(chosen):
                view.index_copy_(0, chosen, solarize(view.index_select(0, chosen), self.solarize_threshold))
            views.index_copy_(0, members, view)  # several times faster than views[members] = view on a CPU
        return views


@dataclass(frozen=True, kw_only=True)
class CropAndFlip(ViewAugmentation):
    """Random crops and flips without change of colour: where labels or masks make the task (SimCLRv2's fine-tuning,
    MAE, supervised training)."""

    jitter: ColorJitter = field(default_factory=lambda: ColorJitter(probability=0.0))
    """Brightness, contrast, saturation and hue; off."""
    greyscale: float = 0.0
    """Share of the views without colour."""
    blur: GaussianBlur = field(default_factory=lambda: GaussianBlur(probability=0.0))
    """Gaussian blur; off."""


def _unit_range(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the given dtype, in [0, 1]."""
    return images.to(dtype).div_(255) if images.dtype == torch.uint8 else images.to(dtype)


def _positions(mask: Tensor, images: Tensor) -> Tensor:
    """Positions (N,) of the true elements, on the images' device; their number is known without waiting for it."""
    return mask.nonzero().squeeze(1).to(images.device)


def _check(images: Tensor, random: Random) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"Views are made of images (B, 1 or 3, H, W), not of a tensor of shape {tuple(images.shape)}.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"Views are made of uint8 or floating images, not of {images.dtype}.")
    if len(images) != len(random.rows):
        raise ValueError(
            f"There are {len(images)} images and draws for {len(random.rows)} rows; they must be equally many."
        )
