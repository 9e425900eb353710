"""The projection head of DINO (2104.14294, section 3.2) and DINOv2 (2304.07193): features to scores of K prototypes."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """A linear layer without bias whose rows have a direction and a gain: w_k = g_k * v_k / |v_k| (Salimans and Kingma
    2016, arXiv 1602.07868). With gains of 1, outputs for a unit vector are its cosine similarities to K directions.

    Args:
        in_dim: width of the input, D.
        out_dim: how many prototypes, K.
        frozen_gain: whether the gains stay 1.
    """

    def __init__(self, in_dim: int, out_dim: int, frozen_gain: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not frozen_gain)
        # As long as the rows of a fresh ``nn.Linear``, as in the official codes: the length decides how quickly a
        # direction turns at a given learning rate.
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-(in_dim**-0.5), in_dim**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class DINOHead(nn.Module):
    """Linear layers with GELU between them, L2 normalisation, K weight-normalised prototypes.

    Weights of the linear layers begin as N(0, 0.02^2), biases as 0. Autocast reaches the linear layers only: the
    cosines are divided by temperatures of a few hundredths, so they are computed in float32 at least.

    Args:
        in_dim: width of the features.
        out_dim: prototypes K; 65536 in DINO.
        hidden_dim: width between the linear layers.
        bottleneck_dim: width of the vector that is normalised and compared with the prototypes.
        layers: linear layers before the prototypes, at least 1.
        batch_norm: whether the hidden layers are batch-normalised.
        frozen_gain: whether the prototypes' gains stay 1; false is better but may be unstable (official code).

    Raises:
        ValueError: fewer than 1 layer.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        batch_norm: bool = False,
        frozen_gain: bool = True,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a head of {layers} layers was asked for; it has at least 1 before the prototypes")
        modules: list[nn.Module] = []
        width = in_dim
        for _ in range(layers - 1):
            modules.append(nn.Linear(width, hidden_dim))
            if batch_norm:
                modules.append(nn.BatchNorm1d(hidden_dim))
            modules.append(nn.GELU())
            width = hidden_dim
        modules.append(nn.Linear(width, bottleneck_dim))
        self.mlp = nn.Sequential(*modules)
        for module in modules:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = Prototypes(bottleneck_dim, out_dim, frozen_gain)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) -> logits (B, K), of float32 at least; with gains of 1 they are cosines."""
        z: Tensor = self.mlp(x)
        with torch.autocast(z.device.type, enabled=False):
            z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1, eps=1e-12)
            return cast("Tensor", self.last_layer(z))

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """Directions and gains of the prototypes: what DINO freezes in the first epoch."""
        return [self.last_layer.weight_v, self.last_layer.weight_g]
