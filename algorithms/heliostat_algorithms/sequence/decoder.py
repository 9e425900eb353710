"""The Transformer's decoder without an encoder: the paper's blocks as a network for language models and classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from heliostat_algorithms.sequence.attention import CausalAttention, FeedForward, sinusoids
from heliostat_algorithms.sequence.network import Block, NetworkConfig, Norms, Stack, layer_norm


@dataclass(frozen=True, kw_only=True)
class TransformerDecoder(NetworkConfig):
    """Causal self-attention and feed-forward layers (Vaswani et al. 2017), norms after the branches."""

    type: Literal["transformer"] = "transformer"
    heads: int = 8
    hidden: int = 2048
    """Width inside the feed-forward layers."""
    norm: Norms = "post"
    """Norms after the branches, as in the paper, or before them, as in GPT-2 and later work: deep networks then train
    without a long warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or self.hidden < 1:
            raise ValueError(f"heads and hidden must be at least 1, not {self.heads} and {self.hidden}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads cannot share a width of {self.width} equally")

    def build(self) -> Stack:
        norm = layer_norm(self.width)
        return Stack(
            [
                Block(
                    CausalAttention(self.width, self.heads),
                    FeedForward(self.width, self.hidden),
                    norm,
                    self.norm,
                    self.dropout,
                )
                for _ in range(self.depth)
            ],
            width=self.width,
            positions=sinusoids,
            dropout=self.dropout,
            norm=norm() if self.norm == "pre" else None,
            embedding_std=self.width**-0.5,
            embedding_scale=self.width**0.5,
        )
