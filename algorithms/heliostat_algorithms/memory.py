"""The dictionary of MoCo: keys of earlier batches, first in, first out (He et al. 2019, arXiv 1911.05722, section 3.2).

It is part of the state: saved, restored and the same on every worker, because what enters is the *global* batch's keys
in the order of its rows.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Memory(nn.Module):
    """A ring of L2-normalised keys. It begins with random directions, as in the official code.

    Args:
        size: keys that it holds, K.
        dim: width of a key, D.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def negatives(self) -> Tensor:
        """(K, D): all keys, a copy that ``enqueue`` does not change."""
        return cast("Tensor", self.keys).clone()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by the (N, D) keys of a global batch; of a batch larger than the ring the last K
        stay."""
        ring, position = cast("Tensor", self.keys), cast("Tensor", self.next)
        size, count = len(ring), len(keys)
        kept = keys[-size:].to(ring.dtype)
        rows = (position + (count - len(kept)) + torch.arange(len(kept), device=ring.device)) % size
        ring.index_copy_(0, rows, kept)
        position.copy_((position + count) % size)
