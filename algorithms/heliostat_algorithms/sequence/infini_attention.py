"""Infini-attention: Leave No Context Behind, Munkhdalai, Faruqui and Gopal 2024 (arXiv 2404.07143).

Attention within segments of a fixed length, and for all that came before a memory of constant size, of the same
queries, keys and values: for each head a matrix M (d_k, d_v) and a normaliser z (d_k), with sigma = ELU + 1,

    read (equation 3)      A_mem = sigma(Q) M / (sigma(Q) z)
    write (equation 4)     M <- M + sigma(K)^T V,       z <- z + sum of sigma(K) over the segment
    delta rule (5)         M <- M + sigma(K)^T (V - sigma(K) M / (sigma(K) z))
    mix (6)                A = sigmoid(b) A_mem + (1 - sigmoid(b)) A_dot

A segment reads what earlier segments wrote, and writes after that. Positions turn the queries and keys of the local
attention (rotary, 2104.09864) and not those of the memory (section 3.1), where a place of long ago means nothing.
Gradients flow through the memory to the first segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import ParameterGroup
from heliostat_algorithms.sequence.attention import FeedForward, Heads
from heliostat_algorithms.sequence.network import Block, Mixer, MixerState, NetworkConfig, Norms, Stack, layer_norm

Rule = Literal["linear", "delta"]
"""How the memory is written."""


def sigma(x: Tensor) -> Tensor:
    """ELU + 1: above 0."""
    return F.elu(x) + 1


def read(memory: Tensor, normalizer: Tensor, queries: Tensor) -> Tensor:
    """(B, H, d_k, d_v), (B, H, d_k) and sigma(Q) (B, H, T, d_k) -> A_mem (B, H, T, d_v); 0 from an empty memory."""
    weight = queries @ normalizer.unsqueeze(3)
    # An empty memory has weight 0, and so has no other: sigma is positive.
    return (queries @ memory) / torch.where(weight > 0, weight, 1)


def write(memory: Tensor, normalizer: Tensor, keys: Tensor, values: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """The memory after sigma(K) (B, H, T, d_k) and V (B, H, T, d_v)."""
    new = values - read(memory, normalizer, keys) if rule == "delta" else values
    return memory + keys.transpose(2, 3) @ new, normalizer + keys.sum(dim=2)


def rotated(x: Tensor, first: int) -> Tensor:
    """(B, H, T, d) at the positions ``first``, ``first`` + 1, ... of a segment -> the same, turned by them: pairs of
    dimensions i and d / 2 + i by the angle p / 10000^(2i / d)."""
    half = x.shape[3] // 2
    place = torch.arange(first, first + x.shape[2], dtype=torch.float64, device=x.device)
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angle = place[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=3)


class InfiniMixer(Mixer):
    """Causal attention in segments with a compressive memory.

    Its state is, of constant size: M and z of all finished segments; sigma-less keys and values of the current
    segment, (B, H, segment, d), filled from the front; how many of them there are, (B,), equal for all rows.
    """

    def __init__(
        self, width: int, heads: int, segment: int, rule: Rule, memory: bool, gate_learning_rate: float
    ) -> None:
        super().__init__()
        self.attention = Heads(width, heads)
        self.segment, self.rule, self.memory = segment, rule, memory
        self.gate_learning_rate = gate_learning_rate
        self.gate = nn.Parameter(torch.zeros(heads)) if memory else None

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        a = self.attention
        q, k, v = a.split(x, a.q), a.split(x, a.k), a.split(x, a.v)
        length, size = x.shape[1], self.segment
        # All segments at once: local attention knows nothing of the others. The last one is filled up, and what is
        # filled comes later than all that is not.
        whole = -(-length // size) * size
        segments = whole // size
        local_q, local_k, local_v = (
            F.pad(part, (0, 0, 0, whole - length))
            .reshape(len(x), a.heads, segments, size, part.shape[3])
            .transpose(1, 2)
            .flatten(0, 1)
            for part in (q, k, v)
        )
        local = F.scaled_dot_product_attention(rotated(local_q, 0), rotated(local_k, 0), local_v, is_causal=True)
        joined = local.view(len(x), segments, a.heads, size, v.shape[3]).transpose(1, 2).flatten(2, 3)
        y = joined[:, :, :length]
        if not self.memory or length <= size:
            return a.join(self._mixed(y, torch.zeros_like(y)))
        sq, sk = sigma(q), sigma(k)
        m, z = self._empty(x)
        recalled = []
        for start in range(0, length, size):
            part = slice(start, start + size)
            recalled.append(read(m, z, sq[:, :, part]))
            if start + size < length:
                m, z = write(m, z, sk[:, :, part], v[:, :, part], self.rule)
        return a.join(self._mixed(y, torch.cat(recalled, dim=2)))

    def _mixed(self, local: Tensor, recalled: Tensor) -> Tensor:
        if self.gate is None:
            return local
        share = torch.sigmoid(self.gate).view(1, -1, 1, 1)
        return share * recalled + (1 - share) * local

    def _empty(self, like: Tensor) -> tuple[Tensor, Tensor]:
        heads, inner = self.attention.heads, self.attention.q.out_features // self.attention.heads
        return like.new_zeros(len(like), heads, inner, inner), like.new_zeros(len(like), heads, inner)

    def initial_state(self, like: Tensor) -> MixerState:
        heads, inner = self.attention.heads, self.attention.q.out_features // self.attention.heads
        local = like.new_zeros(len(like), heads, self.segment, inner)
        count = torch.zeros(len(like), dtype=torch.int64)  # on the CPU: nobody waits for a device to know it
        return (*self._empty(like), local, local, count)

    def advance(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        a = self.attention
        q, k, v = a.split(x, a.q), a.split(x, a.k), a.split(x, a.v)
        m, z, local_k, local_v, count = state
        filled, done = int(count[0]), 0
        said = []
        while done < x.shape[1]:
            if filled == self.segment:  # the segment is over: it is remembered, and the next one begins
                if self.memory:
                    m, z = write(m, z, sigma(local_k), local_v, self.rule)
                filled = 0
            take = min(self.segment - filled, x.shape[1] - done)
            part, end = slice(done, done + take), filled + take
            local_k = torch.cat([local_k[:, :, :filled], k[:, :, part], local_k[:, :, end:]], dim=2)
            local_v = torch.cat([local_v[:, :, :filled], v[:, :, part], local_v[:, :, end:]], dim=2)
            mask = torch.ones(take, end, dtype=torch.bool, device=x.device).tril(filled)
            local = F.scaled_dot_product_attention(
                rotated(q[:, :, part], filled), rotated(local_k[:, :, :end], 0), local_v[:, :, :end], attn_mask=mask
            )
            said.append(self._mixed(local, read(m, z, sigma(q[:, :, part]))))
            filled, done = end, done + take
        return a.join(torch.cat(said, dim=2)), (m, z, local_k, local_v, torch.full_like(count, filled))

    def own_groups(self) -> list[ParameterGroup]:
        """The gates, without decay, at a learning rate of their own."""
        if self.gate is None:
            return []
        return [ParameterGroup("gates", [self.gate], False, learning_rate=self.gate_learning_rate)]


@dataclass(frozen=True, kw_only=True)
class InfiniAttention(NetworkConfig):
    """Infini-attention (Munkhdalai et al. 2024): attention in segments, and a memory of constant size for the rest."""

    type: Literal["infini-attention"] = "infini-attention"
    heads: int = 8
    """8 in the paper's small models; each has a memory and a gate."""
    hidden: int = 2048
    """Width inside the feed-forward layers."""
    segment: int = 2048
    """Positions of a segment; 2048 in the paper."""
    rule: Rule = "delta"
    """How the memory is written: "linear", or "delta", which writes only what is not recalled already."""
    memory: bool = True
    """Without it, segments know nothing of one another: what the memory is worth is seen beside it."""
    gate_learning_rate: float = 0.01
    """Peak learning rate of the gates, which begin at 0, halfway. At the rate of the other weights they hardly move, as
    a published attempt to repeat the paper found."""
    norm: Norms = "pre"
    """Norms before the branches, as in the models that the paper starts from, or after them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("heads", "hidden", "segment"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % (2 * self.heads):
            raise ValueError(f"rotary positions need an even width for each head: {self.width} over {self.heads} heads")
        if not self.gate_learning_rate > 0:
            raise ValueError(f"gate_learning_rate is {self.gate_learning_rate}; it must be above 0")

    def build(self) -> Stack:
        norm = layer_norm(self.width)
        return Stack(
            [
                Block(
                    InfiniMixer(self.width, self.heads, self.segment, self.rule, self.memory, self.gate_learning_rate),
                    FeedForward(self.width, self.hidden),
                    norm,
                    self.norm,
                    self.dropout,
                )
                for _ in range(self.depth)
            ],
            width=self.width,
            dropout=self.dropout,
            norm=norm() if self.norm == "pre" else None,
            embedding_std=self.width**-0.5,
            embedding_scale=self.width**0.5,
        )
