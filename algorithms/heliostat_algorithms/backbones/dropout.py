"""Dropout (Srivastava et al. 2014) that is a function of (seed, step, row) and not of who computes the row.

torch's own draws from a generator with a state, so each worker would drop something else. Here ``prepare`` draws one
key for each row of the global batch, and every dropout of a network hashes the key with its own number (``number``)
into the mask of that row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heliostat_algorithms.randomness import Random, row_bits

_LEVELS = 1 << 16
"""A decision takes 16 random bits, four of them from each 64-bit word; rates are rounded to 1 / 65,536."""


def draw_keys(random: Random) -> Tensor:
    """(rows,) int64: what the dropout of these rows is made from."""
    return random.bits("dropout")


def number(network: nn.Module) -> None:
    """Give each dropout of a network its own number; in the order of ``modules()``, once the network is whole."""
    for stream, module in enumerate(part for part in network.modules() if isinstance(part, Dropout)):
        module.stream = stream


class Dropout(nn.Module):
    """Sets a share of the elements to 0 and enlarges the others so that the expectation stays; in training only."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a dropout rate is {rate}; it must be at least 0 and below 1")
        self.threshold = round(rate * _LEVELS)
        self.stream = -1

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """(B, ...) and the keys (B,) of its rows, on the same device -> (B, ...).

        Raises:
            ValueError: there is something to draw, and no key or no number to draw it from.
        """
        if not self.training or self.threshold == 0:
            return x
        if keys is None or self.stream < 0:
            raise ValueError("dropout in training needs the keys of its rows (draw_keys) and a number (number)")
        size = x[0].numel()
        words = row_bits(keys, self.stream, -(-size // 4))
        draws = words.view(torch.int16)[:, :size].view(x.shape)  # from -32,768, each as likely as any other
        kept = (draws >= self.threshold - _LEVELS // 2).to(x.dtype)
        return x * kept.mul_(_LEVELS / (_LEVELS - self.threshold))

    def extra_repr(self) -> str:
        return f"rate={self.threshold / _LEVELS:.4g}"
