"""What I-JEPA (2301.08243) and V-JEPA (2404.08471) predict: tokens of an encoder, on one scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize_tokens(tokens: Tensor) -> Tensor:
    """(B, N, D) -> (B, N, D): each token with mean 0 and variance 1 over its dimensions (layer normalisation without
    weights, as in both official codes), in float32 at least."""
    with torch.autocast(tokens.device.type, enabled=False):
        return F.layer_norm(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), tokens.shape[-1:])
