"""The transformer encoder's parts: Attention Is All You Need, Vaswani et al. 2017 (arXiv 1706.03762), with the norms
before the branches, as the Vision Transformer has them (2010.11929, equations 2 and 3).

With the options of later work: LayerScale (2103.17239, section 2), stochastic depth (1603.09382) and the gated SwiGLU
(2002.05202, equation 6). Parameters are named as in the common ViT state dicts.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.backbones.drop_path import Kept, add_branch


class Attention(nn.Module):
    """Multi-head self-attention of (B, N, D) tokens: softmax(q k^T / sqrt(D / heads)) v, then a projection."""

    def __init__(self, width: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, outputs, D): what the first tokens gather from all."""
        q, k, v = self._split(x)
        y = F.scaled_dot_product_attention(q[:, :, :outputs], k, v)
        gathered: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return gathered

    def weights(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """(B, N, D) -> (B, heads, N or outputs, N): how the first tokens weigh all of them; rows sum to 1."""
        q, k, _ = self._split(x)
        scores = q[:, :, :outputs] @ k.transpose(2, 3) / (x.shape[2] // self.heads) ** 0.5
        return torch.softmax(scores, dim=3)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, N, D / heads)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class SwiGLU(nn.Module):
    """W3 (silu(W1 x) * W2 x). With a third matrix and two thirds of the width, rounded up to a multiple of 8, it has
    about as many parameters as an ``Mlp`` of ``hidden``; DINOv2 (2304.07193) trains its largest networks with it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        y: Tensor = self.w3(F.silu(gate) * value)
        return y


class LayerScale(nn.Module):
    """One learned factor for each dimension of a residual branch; small at first, so that deep networks begin near the
    identity."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.gamma


class Block(nn.Module):
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))).

    Args:
        width: D.
        heads: of the attention; divides D.
        hidden: width inside the MLP; two thirds of it inside a SwiGLU.
        feed_forward: which of the two.
        layer_scale: where LayerScale's factors start; None: without.
        qkv_bias: whether queries, keys and values have a bias.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        feed_forward: Literal["mlp", "swiglu"] = "mlp",
        layer_scale: float | None = None,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, qkv_bias)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden) if feed_forward == "mlp" else SwiGLU(width, hidden)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(
        self,
        x: Tensor,
        attention: Kept | None = None,
        feed_forward: Kept | None = None,
        outputs: int | None = None,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, outputs, D): the first tokens alone, where nobody looks at the others.

        ``attention`` and ``feed_forward`` say which samples go through each branch; None: all.
        """
        x = add_branch(x, lambda rows: self.ls1(self.attn(self.norm1(rows), outputs)), attention, outputs)
        return add_branch(x, lambda rows: self.ls2(self.mlp(self.norm2(rows))), feed_forward)


Initialization = Literal["trunc-normal", "trunc-normal-by-depth", "xavier"]
"""How linear layers begin."""

_LAST_OF_BRANCH = re.compile(r"\bblocks\.(\d+)\.(?:attn\.proj|mlp\.fc2|mlp\.w3)$")


@torch.no_grad()
def initialize(module: nn.Module, how: Initialization) -> None:
    """Draw the weights of all linear layers anew and set their biases to 0.

    "trunc-normal": standard deviation 0.02, as in DeiT, DINO and DINOv2 (cut at +-2, which is never reached).
    "trunc-normal-by-depth": the same, then the last matrix of each residual branch of block l (from 1) is divided by
    sqrt(2 l), as in BEiT. The codes of I-JEPA and V-JEPA do so too, but draw all linear layers once more afterwards.
    "xavier": uniform by Glorot and Bengio 2010, as in the ViT paper's code and MoCo v3, queries, keys and values as the
    three matrices they are. (MAE's code takes them as one, which makes them smaller by the factor sqrt(2).)
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            for matrix in part.weight.chunk(3 if name.endswith("qkv") else 1):
                if how == "xavier":
                    nn.init.xavier_uniform_(matrix)
                else:
                    nn.init.trunc_normal_(matrix, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
            last = _LAST_OF_BRANCH.search(name)
            if how == "trunc-normal-by-depth" and last:
                part.weight /= math.sqrt(2 * (int(last[1]) + 1))
