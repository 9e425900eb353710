"""Colour jitter and greyscale for batches of images in [0, 1], with parameters per sample.

The operations are those of SimCLR's appendix A (Chen et al. 2020, arXiv 2002.05709) as Pillow defines them: brightness,
contrast and saturation blend with black, with the mean grey level and with the grey image; hue turns the angle of HSV.
Each is clipped to [0, 1]. Grey is ITU-R 601's luma. For one channel, saturation, hue and greyscale are identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heliostat_algorithms.randomness import Random

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey level (ITU-R 601, as in Pillow; torchvision rounds the first to .2989)."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Columns of jitter factors, and the numbers of the operations in an order."""


def luma(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W), the grey level; for one channel a copy of it."""
    if images.shape[1] == 1:
        return images.clone()
    red, green, blue = (images[:, channel, None] for channel in range(3))
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def to_greyscale(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W), every channel the grey level."""
    return luma(images).expand_as(images).contiguous()


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """(B, C, H, W), (B,) -> ``clip(factor * image)``; 0 gives black, 1 the image."""
    return images.mul(_per_sample(factor, images)).clamp_(0.0, 1.0)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """(B, C, H, W), (B,) -> ``clip(factor * image + (1 - factor) * mean)``; 0 gives the mean of the grey image.

    Pillow rounds that mean to an integer of 0 .. 255; here it is exact.
    """
    factor = _per_sample(factor, images)
    return images.mul(factor).add_((1 - factor) * luma(images).mean((1, 2, 3), keepdim=True)).clamp_(0.0, 1.0)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """(B, C, H, W), (B,) -> ``clip(factor * image + (1 - factor) * grey)``; 0 gives the grey image."""
    if images.shape[1] == 1:
        return images.clone()
    factor = _per_sample(factor, images)
    return torch.addcmul(luma(images) * (1 - factor), images, factor).clamp_(0.0, 1.0)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """(B, C, H, W), (B,) -> the same saturation and value, the hue turned by ``shift`` turns in [-1/2, 1/2].

    With value V, chroma c and hue h in sixths of a turn, the conversion back from HSV is, for each channel,
    V - c * clip(2 - d, 0, 1), where d is the distance around the circle between h and the hue where that channel is
    darkest (red: cyan, 3; green: magenta, 5; blue: yellow, 1). So saturation, c / V, need not be computed.
    """
    if images.shape[1] == 1:
        return images.clone()
    red, green, blue = images.unbind(1)
    value = torch.maximum(red, green)
    torch.maximum(value, blue, out=value)
    chroma = torch.minimum(red, green)
    torch.minimum(chroma, blue, out=chroma)
    torch.sub(value, chroma, out=chroma)

    # Hue times chroma, in [-3, 3]: 0 + (g - b) where red is largest, 2c + (b - r) for green, -2c + (r - g) for blue.
    # A mask in floating point with lerp is exact (weights 0 and 1) and several times faster than torch.where on a CPU.
    largest = torch.empty_like(value)
    hue = torch.sub(red, green).sub_(chroma, alpha=2)
    torch.lerp(hue, torch.sub(blue, red).add_(chroma, alpha=2), torch.eq(green, value, out=largest), out=hue)
    torch.lerp(hue, torch.sub(green, blue), torch.eq(red, value, out=largest), out=hue)
    hue.div_(chroma.clamp_min(torch.finfo(chroma.dtype).tiny))  # grey pixels: 0 / tiny = 0, and chroma removes it below

    darkest = images.new_tensor([3.0, -1.0, 1.0])
    turn = torch.remainder(shift.to(images)[:, None] * 6 - darkest + 3, 6) - 3  # in [-3, 3), so the sum is in [-6, 6]
    out = hue[:, None] + turn[:, :, None, None]
    out.abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)  # 2 - d = |(|x| - 3)| - 1 for |x| <= 6
    return torch.addcmul(value[:, None], chroma[:, None], out, value=-1, out=out).clamp_(0.0, 1.0)


def hue_place(order: Tensor) -> Tensor:
    """(B, 4) -> (B,) int64: which operation of each order is the hue's, 0 .. 3."""
    return (order == HUE).to(torch.uint8).argmax(1)


def color_jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Apply the four operations to each image in an order of its own; see ``jitter_group`` for how.

    Args:
        images: (B, C, H, W) floating, in [0, 1].
        factors: (B, 4) floating: brightness, contrast and saturation factors, shift of the hue in turns.
        order: (B, 4) int64, for each image a permutation of the operations' numbers: the first is applied first.

    Returns:
        (B, C, H, W), a tensor of its own.
    """
    out = torch.empty_like(images)
    place = hue_place(order)
    for group in range(4):
        rows = (place == group).nonzero().squeeze(1)
        if len(rows):
            members = rows.to(images.device)
            out[members] = jitter_group(images[members], factors[rows], order[rows], group)
    return out


def jitter_group(images: Tensor, factors: Tensor, order: Tensor, place: int) -> Tensor:
    """``color_jitter`` of images whose orders all have the hue at ``place``; may overwrite them.

    The other three operations are all clip(a * image + g * grey + m * mean), with coefficients per sample. So a group
    needs three such steps and one turn of the hue, instead of one pass for each operation in each order.
    """
    affine = order[order != HUE].view(-1, 3)
    factor = factors.gather(1, affine)
    rest = 1 - factor
    if images.shape[1] == 1:
        factor, rest = (part.masked_fill(affine == SATURATION, value) for part, value in ((factor, 1.0), (rest, 0.0)))
    steps = torch.stack([factor, rest * (affine == SATURATION), rest * (affine == CONTRAST)]).permute(2, 0, 1)
    steps = steps.to(images)  # (3 steps, 3 coefficients, B)
    for step in range(3):
        if step == place:
            images = adjust_hue(images, factors[:, HUE])
        images = _affine_(images, *steps[step])
    return adjust_hue(images, factors[:, HUE]) if place == 3 else images


def _affine_(images: Tensor, own: Tensor, grey: Tensor, mean: Tensor) -> Tensor:
    """``clip(own * image + grey * luma + mean * mean(luma))`` in place; coefficients (B,)."""
    base = luma(images)
    constant = base.mean((1, 2, 3), keepdim=True).mul_(_per_sample(mean, images))
    base.mul_(_per_sample(grey, images)).add_(constant)
    return torch.addcmul(base, images, _per_sample(own, images), out=images).clamp_(0.0, 1.0)


def _per_sample(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images).view(-1, 1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue, in a random order for each sample (SimCLR, appendix A)."""

    probability: float = 0.8
    """Share of the samples that are changed."""
    strength: float = 1.0
    """Multiplies the four ranges below: SimCLR's s, 1 for ImageNet and 0.5 for CIFAR."""
    brightness: float = 0.8
    """The factor is uniform in 1 - b .. 1 + b and not below 0, where b is this times ``strength``."""
    contrast: float = 0.8
    """As brightness."""
    saturation: float = 0.8
    """As brightness."""
    hue: float = 0.2
    """The hue turns by uniform -h .. h turns, where h is this times ``strength`` and at most 1/2."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"The probability of colour jitter is {self.probability}; it must be from 0 to 1.")
        for name in ("strength", "brightness", "contrast", "saturation", "hue"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"The colour jitter's {name} is {getattr(self, name)}; it must be 0 or larger, and finite."
                )
        if self.hue * self.strength > 0.5:
            raise ValueError(
                f"The hue's range is hue * strength = {self.hue * self.strength:g} turns; "
                "it must be at most 0.5, half a turn."
            )

    def draw(self, random: Random) -> tuple[Tensor, Tensor, Tensor]:
        """Which samples change, bool (B,); their factors (B, 4) and orders (B, 4) as ``color_jitter`` takes them."""
        apply = random.bernoulli("jitter/apply", self.probability)
        ranges = [self.strength * width for width in (self.brightness, self.contrast, self.saturation, self.hue)]
        low = torch.tensor([max(0.0, 1 - width) for width in ranges[:HUE]] + [-ranges[HUE]], device=apply.device)
        high = torch.tensor([1 + width for width in ranges[:HUE]] + [ranges[HUE]], device=apply.device)
        factors = random.uniform("jitter/factors", 4) * (high - low) + low
        return apply, factors, random.permutation("jitter/order", 4)
