"""InfoNCE, the contrastive loss of MoCo (1911.05722, equation 1; 2104.02057, equation 1).

    l(q) = -log( exp(q k+ / t) / sum over candidates k of exp(q k / t) ),   q and k of length 1

where k+ is the key of the same image. MoCo v1 and v2 compare it with a queue of earlier keys, MoCo v3 with the keys of
the other images of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.collectives import gather_rows, rank
from heliostat_algorithms.objectives.tiled import tiled_cross_entropy


def queue_info_nce(
    queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Each query must find its key among that key and all negatives.

    Args:
        queries: (B, D) this worker's, of any length.
        keys: (B, D) the key of each query, of any length; without gradient.
        negatives: (K, D) unit vectors, the same for all queries; without gradient.
        temperature: t; 0.07 in MoCo v1, 0.2 in v2.

    Returns:
        The mean over this worker's B queries, and ``contrastive_top1``: the share of queries to which their key is more
        similar than all K negatives.
    """
    with torch.autocast(queries.device.type, enabled=False):  # half precision has too few digits near similarity 1
        dtype = torch.promote_types(queries.dtype, torch.float32)
        q, k = F.normalize(queries.to(dtype), dim=1), F.normalize(keys.detach().to(dtype), dim=1)
        positive = (q * k).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, q @ negatives.detach().to(dtype).T], dim=1) / temperature  # (B, 1 + K)
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))
        with torch.no_grad():
            found = logits[:, 0] > logits[:, 1:].amax(dim=1)
    return loss, {"contrastive_top1": found.to(dtype).mean()}


def batch_info_nce(
    queries: Tensor, keys: Tensor, temperature: float, tile: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Each query must find its key among the keys of the global batch.

    Args:
        queries: (B, D) this worker's, of any length.
        keys: (B, D) the key of each query, of any length; those of all workers are candidates. Without gradient.
        temperature: t; in MoCo v3 0.2 for Vision Transformers and 1 for ResNet-50.
        tile: hold so many rows and columns of the similarities at once; None: all, (B, N). See ``tiled``.

    Returns:
        The mean over this worker's B queries, and ``contrastive_top1``: the share of queries to which their key is more
        similar than all others of the global batch.
    """
    with torch.autocast(queries.device.type, enabled=False):
        dtype = torch.promote_types(queries.dtype, torch.float32)
        q = F.normalize(queries.to(dtype), dim=1)
        k = gather_rows(F.normalize(keys.detach().to(dtype), dim=1))  # (N, D), in rank order
        own = rank() * len(q) + torch.arange(len(q), device=q.device)
        if tile is not None:
            made = tiled_cross_entropy(q, k, own, None, temperature, tile)
            return made.loss.mean(), {"contrastive_top1": made.first.to(dtype).mean()}
        logits = q @ k.T / temperature
        loss = F.cross_entropy(logits, own)
        with torch.no_grad():
            positive = logits.gather(1, own.unsqueeze(1))
            others = logits.scatter(1, own.unsqueeze(1), float("-inf"))
            found = positive.squeeze(1) > others.amax(dim=1)
    return loss, {"contrastive_top1": found.to(dtype).mean()}
