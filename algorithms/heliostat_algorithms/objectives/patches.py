"""Pixels of patches, and MAE's loss: the reconstruction of those that were hidden (He et al. 2021, arXiv 2111.06377,
section 3, "Reconstruction target")."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-6
"""Added to a patch's variance, as in the official code."""


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, N, P * P * C): patches row by row; in each its pixels row by row, in each its channels.

    Raises:
        ValueError: the patches do not divide the images.
    """
    B, C, H, W = images.shape
    P = patch_size
    if H % P or W % P:
        raise ValueError(f"patches of {P} pixels do not divide images of {H} x {W}")
    split = images.reshape(B, C, H // P, P, W // P, P)
    return split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, grid: tuple[int, int], channels: int) -> Tensor:
    """(B, N, P * P * C) -> (B, C, H, W): the inverse of ``patchify`` for N = down * across patches.

    Raises:
        ValueError: the patches do not fill the grid, or are not square with so many channels.
    """
    B, count, values = patches.shape
    down, across = grid
    P = math.isqrt(values // channels)
    if count != down * across or values != P * P * channels:
        raise ValueError(
            f"{count} patches of {values} values do not make an image of {down} x {across} square patches with "
            f"{channels} channels"
        )
    split = patches.reshape(B, down, across, P, P, channels)
    return split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def select(patches: Tensor, places: Tensor) -> Tensor:
    """(B, N, D) and places (B, T) int64 -> (B, T, D), from each row its own."""
    return patches.gather(1, places.unsqueeze(2).expand(-1, -1, patches.shape[2]))


def normalize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each patch (..., D) with mean 0 and variance 1 over all its values, channels together.

    The variance is the unbiased one (its divisor is D - 1), and 1e-6 is added to it, as in the official code.

    Returns:
        the patches (..., D), their means and their deviations (..., 1): patch = normalised * deviation + mean.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    deviation = (patches.var(dim=-1, keepdim=True, correction=1) + _EPS).sqrt()
    return (patches - mean) / deviation, mean, deviation


def masked_reconstruction(predictions: Tensor, patches: Tensor, hidden: Tensor, normalize: bool = True) -> Tensor:
    """Squared error of the hidden patches' pixels: sum(mask * error) / sum(mask), error being a patch's mean over its
    values. All images hide equally many patches, so that this is also the mean over images.

    Args:
        predictions: (B, T, D) for the hidden patches, in the order of ``hidden``.
        patches: (B, N, D) the pixels of all patches.
        hidden: (B, T) int64, the places of the hidden ones.
        normalize: whether the targets are normalised, each patch by itself.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        dtype = torch.promote_types(predictions.dtype, torch.float32)
        targets = select(patches, hidden).to(dtype)
        if normalize:
            targets, _, _ = normalize_patches(targets)
        return F.mse_loss(predictions.to(dtype), targets)
