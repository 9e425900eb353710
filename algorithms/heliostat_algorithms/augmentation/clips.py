"""Random views of clips: one crop and flip for all frames, as V-JEPA has them (Bardes et al. 2024, arXiv 2404.08471,
appendix B). Colours are left alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.augmentation.blocks import blocks
from heliostat_algorithms.augmentation.geometry import crop_boxes, crop_taps
from heliostat_algorithms.augmentation.resampling import combine
from heliostat_algorithms.randomness import Random


@dataclass(frozen=True, kw_only=True)
class ClipAugmentation:
    """A random resized crop and a flip of each clip, the same for all of its frames. The defaults are V-JEPA's."""

    size: int | None = 224
    """Height and width of a view in pixels; null: those of the stored frames."""
    crop_area: tuple[float, float] = (0.3, 1.0)
    """Smallest and largest share of a frame's area that a crop covers."""
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    """Smallest and largest ratio of a crop's width to its height."""
    flip: float = 0.5
    """Share of the clips that are mirrored left to right."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size} pixels; it must be at least 1, or null")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(
                f"crop_area is {self.crop_area}; it must be two shares above 0 and at most 1, the smaller first"
            )
        if not 0 < self.crop_aspect[0] <= self.crop_aspect[1] < float("inf"):
            raise ValueError(f"crop_aspect is {self.crop_aspect}; it must be two positive ratios, the smaller first")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}; it is a share, from 0 to 1")

    def output_size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a view of frames of the ``stored`` (height, width)."""
        return stored if self.size is None else (self.size, self.size)

    def whole(self, clips: Tensor) -> Tensor:
        """(B, T, C, H, W) uint8 -> (B, C, T, S, S), the whole clips at the size of the views, in [0, 1]: what probes
        are shown."""
        _check(clips)
        x = _unit_range(clips)
        size = self.output_size((x.shape[3], x.shape[4]))
        if x.shape[3:] != size:
            frames = F.interpolate(x.flatten(0, 1), size, mode="bilinear", align_corners=False, antialias=True)
            x = frames.view(*x.shape[:3], *size)
        return x.transpose(1, 2).contiguous()

    def __call__(self, clips: Tensor, random: Random) -> Tensor:
        """One random view of each clip.

        Args:
            clips: (B, T, C, H, W): uint8, or floating in [0, 1].
            random: draws for these B rows of the global batch; the view is computed on the clips' device.

        Returns:
            (B, C, T, S, S) in [0, 1], a tensor of its own: float64 if the clips are, otherwise float32.

        Raises:
            ValueError: the clips have another shape or dtype, or another number than the draws.
        """
        _check(clips)
        B, T, C, H, W = clips.shape
        if len(random.rows) != B:
            raise ValueError(f"there are {B} clips and draws for {len(random.rows)} rows; they must be equally many")
        height, width = self.output_size((H, W))
        draws = Random(random.seed, random.step, random.rows, "cpu", random.scope)
        boxes = crop_boxes(draws, H, W, self.crop_area, self.crop_aspect)
        taps = crop_taps(boxes, draws.bernoulli("flip", self.flip), (H, W), (height, width))
        dtype = torch.float64 if clips.dtype == torch.float64 else torch.float32
        views = torch.empty(B, C, T, height, width, dtype=dtype, device=clips.device)
        down, across = (each.to(views) for each in taps)
        elements = T * C * max(H * W, height * width)
        for block in blocks(torch.zeros(B, dtype=torch.int64), elements, clips.device):
            # To the crop, the frames of a clip are channels of one image.
            frames = _unit_range(clips[block]).flatten(1, 2)
            view = combine(frames, down[block], across[block])
            views[block] = view.view(-1, T, C, height, width).transpose(1, 2)
        return views


def _unit_range(clips: Tensor) -> Tensor:
    """In [0, 1]: float64 if the clips are, otherwise float32."""
    if clips.dtype == torch.uint8:
        return clips.to(torch.float32).div_(255)
    return clips if clips.dtype == torch.float64 else clips.to(torch.float32)


def _check(clips: Tensor) -> None:
    if clips.ndim != 5:
        raise ValueError(f"clips are (B, T, C, H, W), not {tuple(clips.shape)}")
    if clips.dtype != torch.uint8 and not clips.is_floating_point():
        raise ValueError(f"clips are uint8 or floating, not {clips.dtype}")
