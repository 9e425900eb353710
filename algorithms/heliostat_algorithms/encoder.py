"""What a representation is read from: the network below the heads."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """A backbone: images (B, C, H, W), or clips (B, C, T, H, W), to features, tokens and attention."""

    feature_dim: int
    """D, the width of features and tokens."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, D): one feature for each sample."""

    @abstractmethod
    def sequence(self, images: Tensor) -> Tensor:
        """(B, N, D): all tokens, or all places of the last feature map, row by row: what attentive probes look at."""

    def attention(self, images: Tensor) -> Tensor | None:
        """(B, heads, h, w): where each head of the last layer looks; None without attention."""
        return None
