"""Random resized crop and horizontal flip, fused into one resampling.

The crop is that of Szegedy et al. 2014 (arXiv 1409.4842, section 6) in its usual form: a
share of the area drawn uniformly, an aspect ratio drawn log-uniformly, a position drawn uniformly (the rule of the
common PyTorch codes).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heliostat_algorithms.augmentation.resampling import Taps, combine
from heliostat_algorithms.randomness import Random

TRIES = 10
"""Candidates drawn for a crop before the central fallback."""


def resized_crop(images: Tensor, boxes: Tensor, flip: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Cut a box out of each image, resize it and mirror some.

    Bilinear with antialiasing: where the box is larger than the output, the triangle of weights widens by that ratio.
    The result is that of Pillow's ``crop(box).resize(size, BILINEAR)`` on floating images: pixels outside the box have
    no part in it. (Pillow's ``resize(size, BILINEAR, box)`` differs at the box's border, where it looks beyond it.)

    Args:
        images: (B, C, H, W) floating, in [0, 1].
        boxes: (B, 4) integer: top, left, height, width in pixels, inside the image.
        flip: (B,) bool, mirrored left to right after the crop.
        size: height and width of the output, or one number for both.

    Returns:
        (B, C, height, width), a tensor of its own, of the images' dtype.
    """
    height, width = images.shape[2:]
    rows, columns = crop_taps(boxes, flip, (height, width), (size, size) if isinstance(size, int) else size)
    return combine(images, rows.to(images), columns.to(images))


def crop_taps(boxes: Tensor, flip: Tensor, source: tuple[int, int], size: tuple[int, int]) -> tuple[Taps, Taps]:
    """Taps of the rows and of the columns for ``resized_crop`` of images of ``source`` (height, width) to ``size``."""
    top, left, height, width = boxes.unbind(1)
    rows = _bilinear(top, height, source[0], size[0])
    columns = _bilinear(left, width, source[1], size[1])
    mirror = flip.view(-1, 1, 1)
    return rows, Taps(
        torch.where(mirror, columns.rows.flip(1), columns.rows),
        torch.where(mirror, columns.weights.flip(1), columns.weights),
    )


def _bilinear(start: Tensor, length: Tensor, source: int, size: int) -> Taps:
    """Taps that resize pixels ``start .. start + length - 1`` of ``source`` to ``size``; start, length: (B,).

    Output i looks at the point (i + 1/2) * length / size of the box; the pixel whose centre is at distance d weighs
    max(0, 1 - d / support) with support = max(1, length / size), normalised over the pixels of the box. In float64:
    at position 224 the rounding of float32 already shows in the fifth digit of a pixel.
    """
    count = math.ceil(2 * max(1.0, source / size))  # an open interval of length 2 * support holds no more
    scale = (length.double() / size).view(-1, 1)
    support = scale.clamp_min(1.0)
    centre = (torch.arange(size, device=start.device, dtype=torch.float64) + 0.5) * scale - 0.5
    pixel = torch.arange(1, count + 1, device=start.device).view(-1, 1, 1) + torch.floor(centre - support)  # (K, B, S)
    last = (length - 1).view(-1, 1).double()
    weights = torch.sub(pixel, centre).abs_().div_(support).neg_().add_(1.0).clamp_min_(0.0)
    nearest = torch.minimum(pixel.clamp_min(0.0), last)
    weights.mul_(nearest == pixel)
    weights.div_(weights.sum(0))
    rows = nearest.add_(start.view(-1, 1)).to(torch.int64)
    return Taps(rows.permute(1, 2, 0).contiguous(), weights.permute(1, 2, 0).contiguous())


def crop_boxes(
    random: Random, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> Tensor:
    """Draw one box for each row.

    A candidate has area A = height * width * U(area) and aspect ratio r = exp(U(log aspect)), so width
    round(sqrt(A * r)) and height round(sqrt(A / r)), halves to the even number. It is valid if it is not empty and fits
    into the image. The first valid one of ``TRIES`` is placed uniformly among all its positions. Without a valid one,
    the box is central and as large as the nearest allowed aspect ratio permits. These are torchvision's rules.

    Args:
        random: draws for these rows.
        height, width: of the images, in pixels.
        area: smallest and largest share of the image's area.
        aspect: smallest and largest ratio of width to height.

    Returns:
        (B, 4) int64 on random's device: top, left, height, width.
    """
    share = random.uniform("crop/area", TRIES).double() * (area[1] - area[0]) + area[0]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = (random.uniform("crop/aspect", TRIES).double() * (high - low) + low).exp_()
    widths = (share * (height * width) * ratio).sqrt_().round_()
    heights = (share * (height * width) / ratio).sqrt_().round_()
    valid = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = valid.to(torch.uint8).argmax(1, keepdim=True)  # of equal values, argmax gives the first
    found = valid.any(1)
    box_width = widths.gather(1, first).squeeze(1)
    box_height = heights.gather(1, first).squeeze(1)
    position = random.uniform("crop/position", 2).double()  # float64: u * n must not round up to n
    top = (position[:, 0] * (height - box_height + 1)).floor_()
    left = (position[:, 1] * (width - box_width + 1)).floor_()
    boxes = torch.stack([top, left, box_height, box_width], 1).long()
    fallback = torch.tensor(_central_box(height, width, aspect), device=boxes.device)
    return torch.where(found[:, None], boxes, fallback)


def _central_box(height: int, width: int, aspect: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest central box whose aspect ratio is allowed: top, left, height, width."""
    box_height, box_width = height, width
    if width / height < aspect[0]:
        box_height = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        box_width = max(1, round(height * aspect[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
