"""Weighted sums of rows: the one operation behind resizing, flipping and blurring.

Both directions of an image are treated apart, and both are sparse: an output row is the sum of a few input rows. A
dense matrix product would spend 224 multiplications where two are needed, and gathering single pixels is slow on a CPU.
Summing whole rows is neither; columns are the rows of the transposed image. Unlike matrix products and convolutions,
these sums are never rounded to TF32 on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DENSE = 64
"""Up to this width, a CPU multiplies by a dense matrix sooner than it transposes an image twice."""


@dataclass(frozen=True)
class Taps:
    """For each sample and output row, which input rows are summed with which weights."""

    rows: Tensor
    """(B, S, K) int64, positions of input rows."""
    weights: Tensor
    """(B, S, K) floating; sums to one over K."""

    def __getitem__(self, samples: slice) -> Taps:
        """The taps of some samples."""
        return Taps(self.rows[samples], self.weights[samples])

    def to(self, images: Tensor) -> Taps:
        """On the images' device, with weights of their dtype."""
        return Taps(self.rows.to(images.device), self.weights.to(images))


def combine_rows(images: Tensor, taps: Taps) -> Tensor:
    """(B, C, H, W) -> (B, C, S, W): ``out[b, c, s] = sum_k weights[b, s, k] * images[b, c, rows[b, s, k]]``."""
    B, C, H, W = images.shape
    S, K = taps.rows.shape[1:]
    planes = torch.arange(0, B * C * H, H, device=images.device).view(B, C, 1, 1)
    index = (planes + taps.rows[:, None]).view(-1, K)
    weights = taps.weights[:, None].expand(B, C, S, K).reshape(-1, K)
    table = images.reshape(B * C * H, W)
    return F.embedding_bag(index, table, per_sample_weights=weights, mode="sum").view(B, C, S, W)


def combine_columns(images: Tensor, taps: Taps) -> Tensor:
    """(B, C, H, W) -> (B, C, H, S): ``combine_rows`` in the other direction."""
    B, C, H, W = images.shape
    if images.device.type == "cpu" and W <= DENSE:
        matrix = images.new_zeros(B, taps.rows.shape[1], W).scatter_add_(2, taps.rows, taps.weights)
        return torch.bmm(images.reshape(B, C * H, W), matrix.transpose(1, 2)).view(B, C, H, -1)
    return combine_rows(images.transpose(2, 3), taps).transpose(2, 3).contiguous()


def combine(images: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """(B, C, H, W) -> (B, C, S, T): rows, then columns; clipped to [0, 1], which rounding may pass by an ulp."""
    return combine_columns(combine_rows(images, rows), columns).clamp_(0.0, 1.0)
