"""Pixels on the scale that a network is meant for."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

PerChannel: TypeAlias = float | tuple[float, ...]
"""One number for all channels, or one for each."""


class Standardization(nn.Module):
    """(x - mean) / std of each channel; with a mean of 0 and a deviation of 1 nothing is computed.

    Args:
        mean, std: of the pixels.
        channels: of the images.
        sides: how many dimensions follow that of the channels: 2 for images, 3 for clips.

    Raises:
        ValueError: another number of values than of channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: PerChannel, std: PerChannel, channels: int, sides: int) -> None:
        super().__init__()
        self.changes = mean != 0.0 or std != 1.0
        for name, given in (("mean", mean), ("std", std)):
            values = given if isinstance(given, tuple) else (given,) * channels
            if len(values) != channels:
                raise ValueError(f"pixel_{name} has {len(values)} values, but images have {channels} channels")
            self.register_buffer(name, torch.tensor(values).view(1, -1, *(1,) * sides), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if not self.changes:
            return images
        return (images - self.mean) / self.std
