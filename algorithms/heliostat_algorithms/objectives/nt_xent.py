"""NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR (2002.05709, equation 1 and algorithm 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.collectives import gather_rows, rank
from heliostat_algorithms.objectives.tiled import tiled_cross_entropy


def nt_xent(
    first: Tensor, second: Tensor, temperature: float, tile: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Each view must find the other view of its image among all views of the global batch.

        l(i, j) = -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) ),   s = cosine similarity

    The loss is the mean of l over both views of all images, as in the paper. The official code adds the means of the
    two halves, which is exactly twice as much. LARS divides by the gradient's norm, so that there the factor only
    weighs against weight decay, and in biases and normalisation layers, which are not adapted.

    Args:
        first: (B, D) this worker's projections of the first views, of any length.
        second: (B, D) those of the second views.
        temperature: t; 0.1 for ImageNet, 0.5 for CIFAR-10 in the paper.
        tile: hold so many rows and columns of the similarities at once; None: all, (2 B, 2 N). See ``tiled``.

    Returns:
        The mean over this worker's 2 B anchors, and metrics: ``contrastive_top1``, the share of anchors whose positive
        is the most similar of the 2 N - 1 others, and ``contrastive_entropy``, the mean entropy (nats) of the anchors'
        distributions. The official code's metrics are of first views as anchors and the N second views alone: an easier
        choice, with a higher accuracy.
    """
    with torch.autocast(first.device.type, enabled=False):  # half precision has too few digits for similarities near 1
        dtype = torch.promote_types(first.dtype, torch.float32)
        a, b = F.normalize(first.to(dtype), dim=1), F.normalize(second.to(dtype), dim=1)
        B = len(a)
        everything = torch.cat([gather_rows(a), gather_rows(b)])  # (2 N, D): all first views, then all second views
        N = len(everything) // 2
        anchors = torch.cat([a, b])
        rows = rank() * B + torch.arange(B, device=a.device)
        own = torch.cat([rows, rows + N])
        positive = torch.cat([rows + N, rows])
        return find_positive(anchors, everything, positive, own, temperature, tile)


def find_positive(
    anchors: Tensor, candidates: Tensor, positive: Tensor, own: Tensor, temperature: float, tile: int | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean cross-entropy of unit anchors (M, D) that look for a candidate each, and its metrics; see ``nt_xent``.

    Args:
        anchors: (M, D).
        candidates: (N, D).
        positive: (M,) int64, the candidate that each anchor must find.
        own: (M,) int64, the candidate that is the anchor itself, and is left out.
        temperature: t.
        tile: as in ``nt_xent``.
    """
    if tile is not None:
        found = tiled_cross_entropy(anchors, candidates, positive, own, temperature, tile)
        top1, entropy = found.first.to(anchors.dtype).mean(), found.entropy.mean()
        return found.loss.mean(), {"contrastive_top1": top1, "contrastive_entropy": entropy}
    logits = anchors @ candidates.T / temperature
    logits = logits.scatter(1, own.unsqueeze(1), float("-inf"))
    log_probabilities = F.log_softmax(logits, dim=1)
    loss = F.nll_loss(log_probabilities, positive)
    with torch.no_grad():
        # The positive is first where nothing else is as similar: in a collapse all are, and nobody has found it.
        as_similar = (logits >= logits.gather(1, positive.unsqueeze(1))).sum(dim=1)
        top1 = (as_similar == 1).to(anchors.dtype).mean()
        entropy = torch.special.entr(log_probabilities.exp()).sum(dim=1).mean()
    return loss, {"contrastive_top1": top1, "contrastive_entropy": entropy}
