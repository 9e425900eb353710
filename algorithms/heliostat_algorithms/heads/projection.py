"""The projection head g of SimCLR (2002.05709, section 2.1) and SimCLRv2 (2006.10029, section 2)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """``layers`` linear layers, each with batch normalisation, ReLU between them.

    As in the official code no linear layer has a bias: the normalisation after it has one, except after the last, where
    it has a gain only. Weights begin as N(0, 0.01^2). SimCLR has two layers, SimCLRv2 three.

    Args:
        in_dim: width of the features.
        hidden_dim: width between layers.
        out_dim: width of the projections.
        layers: at least 1.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, layers: int = 2) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a projection head of {layers} layers was asked for; it has at least 1")
        dims = [in_dim, *[hidden_dim] * (layers - 1), out_dim]
        self.linears = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(dims))
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) for dim in dims[1:])
        self.norms[-1].register_parameter("bias", None)
        for linear in self.linears:
            nn.init.normal_(cast("nn.Linear", linear).weight, std=0.01)

    def forward(self, features: Tensor, layers: int | None = None) -> Tensor:
        """(B, in_dim) -> (B, out_dim).

        With ``layers`` it stops after so many: SimCLRv2 fine-tunes from the output of the first (ReLU included).
        """
        last = len(self.linears) - 1
        if layers is not None and not 0 <= layers <= last + 1:
            raise ValueError(f"the head has {last + 1} layers; the first {layers} were asked for")
        x = features
        for number in range(last + 1 if layers is None else layers):
            x = self.norms[number](self.linears[number](x))
            if number < last:
                x = x.relu()
        return x
