"""The projector and the predictor of MoCo v3 (2104.02057, section 3 and appendix A)."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


class MLP(nn.Sequential):
    """Linear layers with batch normalisation and ReLU between them: (B, in_dim) -> (B, out_dim).

    As in the official code no linear layer has a bias, and weights begin as torch has them. After the last layer stands
    a normalisation without gain and shift, or nothing.

    Args:
        in_dim: width of the features.
        hidden_dim: width between layers.
        out_dim: width of the outputs.
        layers: linear layers, at least 1.
        last_norm: whether the outputs are normalised.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, layers: int, last_norm: bool = True) -> None:
        if layers < 1:
            raise ValueError(f"an MLP of {layers} layers was asked for; it has at least 1")
        parts: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise([in_dim, *[hidden_dim] * (layers - 1), out_dim])):
            parts.append(nn.Linear(before, after, bias=False))
            if number < layers - 1:
                parts += [nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        if last_norm:
            parts.append(nn.BatchNorm1d(out_dim, affine=False))
        super().__init__(*parts)
