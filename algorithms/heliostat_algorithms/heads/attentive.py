"""Attentive pooling: a learned query asks all tokens for what matters to a task (V-JEPA, Bardes et al. 2024, arXiv
2404.08471, section on attentive probing).

Cross-attention and an MLP, each as a residual branch on the query. As in the official code the tokens are normalised
before the attention and the query is not, and the norms' epsilon is torch's own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.backbones.transformer import Mlp, initialize


class AttentivePool(nn.Module):
    """x = q + proj(attention(q, norm1(tokens))), then x + mlp(norm2(x)), of one learned query q.

    Args:
        width: D, of the tokens and of what comes out.
        heads: of the attention; divides D.
        mlp_ratio: width inside the MLP over D.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        initialize(self, "trunc-normal")
        nn.init.trunc_normal_(self.query, std=0.02)
        with torch.no_grad():  # the last matrix of each branch, as in the first block of a network of this kind
            for last in (self.proj, self.mlp.fc2):
                last.weight /= math.sqrt(2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        q = self.q(self.query).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (1, heads, 1, D / heads)
        k, v = self.kv(self.norm1(tokens)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        gathered = F.scaled_dot_product_attention(q.expand(len(tokens), -1, -1, -1), k, v)
        x: Tensor = self.query + self.proj(gathered.transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norm2(x))
        return x.squeeze(1)
