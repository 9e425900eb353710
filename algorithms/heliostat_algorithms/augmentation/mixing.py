"""Samples made of two: mixup, Zhang et al. 2017 (arXiv 1710.09412), and CutMix, Yun et al. 2019 (arXiv 1905.04899).

Mixup adds a share of a partner's image to each image, CutMix pastes a box of the partner's into it; the label becomes
two labels with the shares of the two images. Partners are the rows of the *global* batch in a random order, as both
papers' codes have it for the batch of a GPU. A partner may lie on another worker, so views travel between workers: each
receives the views of the whole batch for a moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from heliostat_algorithms.collectives import gather_rows
from heliostat_algorithms.randomness import Random


class Mix(NamedTuple):
    """What becomes of some rows of a global batch; all on the CPU, so that it is the same on every device."""

    partner: Tensor
    """(B,) int64: the row of the global batch that each is mixed with."""
    blend: Tensor
    """(B,) float64: the share of the own image in each pixel outside the box; 1 for all but mixup."""
    box: Tensor
    """(B, 4) int64: top, left, bottom, right of what the partner's image covers; empty for all but CutMix."""
    share: Tensor
    """(B,) float64: the share of the own image in the sample, and of its label."""


class Mixed(NamedTuple):
    """Samples with two labels each, on the images' device."""

    images: Tensor
    """(B, C, H, W)."""
    partner_label: Tensor
    """(B,) int64."""
    share: Tensor
    """(B,) float32: the share of the own label; the rest is the partner's."""


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Which samples are mixed and how. Each sample draws its own share, and whether it is by mixup or by CutMix."""

    mixup: float = 0.0
    """alpha of mixup's Beta(alpha, alpha); 0 for none. 0.1 to 0.4 in the paper, 0.8 where a ViT is fine-tuned."""
    cutmix: float = 0.0
    """alpha of CutMix's Beta(alpha, alpha); 0 for none, 1 in the paper."""
    probability: float = 1.0
    """Share of the samples that are mixed at all."""
    switch: float = 0.5
    """Where both are on, the share of the mixed samples that is by CutMix."""

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 for none, or above 0 and finite")
        for name in ("probability", "switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1")

    @property
    def active(self) -> bool:
        """Whether any sample is mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0

    def draw(self, random: Random, batch_size: int, size: tuple[int, int]) -> Mix:
        """Decide what becomes of these rows of a global batch of images of this (height, width)."""
        random = Random(random.seed, random.step, random.rows, "cpu", random.scope)
        partner = random.shared().permutation("partner", batch_size)[0][random.rows.start : random.rows.stop]
        mixed = random.bernoulli("mixed", self.probability)
        by_box = self.switch if self.mixup and self.cutmix else float(self.cutmix > 0)
        cut = random.bernoulli("switch", by_box) & mixed
        one = torch.ones(len(random.rows), dtype=torch.float64)
        blend = torch.where(mixed & ~cut, beta(random, "mixup", self.mixup), one) if self.mixup else one
        wanted = torch.where(cut, beta(random, "cutmix", self.cutmix), one) if self.cutmix else one
        box = boxes(random, wanted, size)
        pasted = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        share = torch.where(cut, 1.0 - pasted / (size[0] * size[1]), blend)
        return Mix(partner, blend, box, share)

    def __call__(self, images: Tensor, labels: Tensor, random: Random, batch_size: int) -> Mixed:
        """Mix this worker's rows with rows of the whole batch; called on all workers together.

        Args:
            images: (B, C, H, W) floating.
            labels: (B,) int64.
            random: draws for these rows.
            batch_size: of the global batch, of which all workers together hold each row once.

        Raises:
            ValueError: the workers do not hold the whole batch.
        """
        everyone = gather_rows(images)
        if len(everyone) != batch_size:
            raise ValueError(f"partners are drawn from a batch of {batch_size}, but {len(everyone)} samples are here")
        mix = self.draw(random, batch_size, (images.shape[2], images.shape[3]))
        partner = mix.partner.to(images.device)
        own = own_share(mix, (images.shape[2], images.shape[3]), images.device).to(images.dtype)
        # Products, not a step from one to the other: shares of 0 and 1 leave the pixels as they are, bit for bit.
        blended = (images * own).add_(everyone.index_select(0, partner).mul_(1.0 - own))
        return Mixed(blended, gather_rows(labels).index_select(0, partner), mix.share.float().to(images.device))


def own_share(mix: Mix, size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """(B, 1, H, W) float32: the share of the own image in each pixel."""
    top, left, bottom, right = mix.box.to(device).T.unsqueeze(2)  # each (B, 1)
    rows, columns = (torch.arange(side, device=device) for side in size)
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    inside = down.unsqueeze(2) & across.unsqueeze(1)
    blend = mix.blend.float().to(device).view(-1, 1, 1)
    return torch.where(inside, 0.0, blend).unsqueeze(1)


def boxes(random: Random, share: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 4) int64: top, left, bottom, right of boxes that leave about ``share`` (B,) of an image of this (height,
    width).

    The sides are sqrt(1 - share) of the image's, the centre is uniform over its pixels, and what lies beyond the border
    is cut off (algorithm A1 of the CutMix paper). Halves of sides are rounded down, as in the official code.
    """
    cut = torch.sqrt(1.0 - share)
    edges: dict[str, tuple[Tensor, Tensor]] = {}
    for name, side in zip(("row", "column"), size, strict=True):
        half = (side * cut).floor().long() // 2
        centre = random.integers(f"box/{name}", side)
        edges[name] = (centre - half).clamp_min(0), (centre + half).clamp_max(side)
    (top, bottom), (left, right) = edges["row"], edges["column"]
    return torch.stack([top, left, bottom, right], dim=1)


def beta(random: Random, stream: str, alpha: float) -> Tensor:
    """(rows,) float64 from Beta(alpha, alpha), exactly, of two uniform numbers each.

    Bailey's polar method (Mathematics of Computation 62, 1994) makes t = sqrt(2 alpha (u^(-1 / alpha) - 1))
    cos(2 pi v), Student's with 2 alpha degrees of freedom, and (1 + t / sqrt(2 alpha + t^2)) / 2 is Beta(alpha, alpha).
    Here both are one expression, without the large numbers of small alpha.
    """
    u, v = random.uniform(stream, 2).double().unbind(1)
    power = u ** (1.0 / alpha)
    cosine = torch.cos(2.0 * math.pi * v)
    return 0.5 + 0.5 * cosine / torch.sqrt(power / (1.0 - power) + cosine.square())
