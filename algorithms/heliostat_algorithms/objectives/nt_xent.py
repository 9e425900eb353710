"""NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR (2002.05709, equation 1 and algorithm 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.collectives import gather_rows, rank


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Each view must find the other view of its image among all views of the global batch.

        l(i, j) = -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) ),   s = cosine similarity

    The loss is the mean of l over both views of all images, as in the paper. The official code adds the means of the
    two halves, which is exactly twice as much. LARS divides by the gradient's norm, so that there the factor only
    weighs against weight decay, and in biases and normalisation layers, which are not adapted.

    Args:
        first: (B, D) this worker's projections of the first views, of any length.
        second: (B, D) those of the second views.
        temperature: t; 0.1 for ImageNet, 0.5 for CIFAR-10 in the paper.

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
        logits = anchors @ everything.T / temperature
        logits = logits.scatter(1, own.unsqueeze(1), float("-inf"))
        log_probabilities = F.log_softmax(logits, dim=1)
        loss = F.nll_loss(log_probabilities, positive)
        with torch.no_grad():
            top1 = (logits.argmax(dim=1) == positive).to(dtype).mean()
            entropy = torch.special.entr(log_probabilities.exp()).sum(dim=1).mean()
    return loss, {"contrastive_top1": top1, "contrastive_entropy": entropy}
