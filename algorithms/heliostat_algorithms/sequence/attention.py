"""The parts of Attention Is All You Need, Vaswani et al. 2017 (arXiv 1706.03762), section 3, with states for decoding.

Heads are those of ``torch.nn.functional.scaled_dot_product_attention``, which never holds the (L, L) matrix of weights
on any device that has a fused kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.sequence.network import Mixer, MixerState


def sinusoids(first: int, count: int, like: Tensor) -> Tensor:
    """(count, D) for the positions ``first``, ``first`` + 1, ...: PE(p, 2i) = sin(p / 10000^(2i / D)) and PE(p, 2i + 1)
    = cos of the same (section 3.5); D, type and device are those of ``like`` (..., D)."""
    width = like.shape[-1]
    place = torch.arange(first, first + count, dtype=torch.float64, device=like.device)
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device=like.device) / width)
    angle = place[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width].to(like.dtype)


class Heads(nn.Module):
    """The four projections of multi-head attention (section 3.2.2), without biases, as in the paper."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads cannot share a width of {width} equally")
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        for matrix in (self.q, self.k, self.v, self.out):
            nn.init.xavier_uniform_(matrix.weight)

    def split(self, x: Tensor, projection: nn.Linear) -> Tensor:
        """(B, L, D) -> (B, heads, L, D / heads)."""
        y: Tensor = projection(x)
        return y.view(*y.shape[:2], self.heads, y.shape[2] // self.heads).transpose(1, 2)

    def join(self, y: Tensor) -> Tensor:
        """(B, heads, L, D / heads) -> (B, L, D)."""
        joined: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return joined


class CausalAttention(Mixer):
    """Self-attention in which no position sees a later one. Its state is the keys and values of all positions so far,
    (B, heads, P, D / heads) each: the cache that grows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Heads(width, heads)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        a = self.attention
        q, k, v = a.split(x, a.q), a.split(x, a.k), a.split(x, a.v)
        return a.join(F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def initial_state(self, like: Tensor) -> MixerState:
        empty = like.new_zeros(
            len(like), self.attention.heads, 0, self.attention.q.out_features // self.attention.heads
        )
        return empty, empty

    def advance(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        a, (seen_k, seen_v) = self.attention, state
        q = a.split(x, a.q)
        k = torch.cat([seen_k, a.split(x, a.k)], dim=2)
        v = torch.cat([seen_v, a.split(x, a.v)], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=_later(x.shape[1], k.shape[2], x.device))
        return a.join(y), (k, v)


def _later(queries: int, keys: int, device: torch.device) -> Tensor | None:
    """(queries, keys): which of all positions the last ones see; None where the only one sees all."""
    if queries == 1:
        return None
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class FeedForward(nn.Module):
    """max(0, x W1 + b1) W2 + b2 (section 3.3)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        for layer in (self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        y: Tensor = self.outer(F.relu(self.inner(x)))
        return y
