"""KoLeo, the regulariser that spreads the features of a batch (Sablayrolles et al. 2018, arXiv 1806.03198, section 3.2;
DINOv2, 2304.07193, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.collectives import gather_rows, rank

_EPS = 1e-8


def koleo(features: Tensor) -> Tensor:
    """Kozachenko and Leonenko's estimate of the entropy of the features, negated: each is pushed from its neighbour.

        -1 / N * sum_i log( min_{j != i} |x_i - x_j| + 1e-8 ),   x = features / |features|

    Neighbours are looked for among the rows of the *global* batch, and receive gradients too. The official code looks
    among the rows of one GPU, so that there the regulariser weakens as more GPUs share a batch; with one worker both
    are the same. It also adds 1e-8 to each coordinate of the difference; here two equal rows do not move each other.

    Args:
        features: (B, D), this worker's rows of one view of each image, of any length: two views of an image are meant
            to be near and must not come together.

    Returns:
        The mean over this worker's rows, in float32 at least: half precision cannot tell neighbours apart.

    Raises:
        ValueError: the global batch is a single row, which has no neighbour.
    """
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1, eps=_EPS)
        everything = gather_rows(x)  # (N, D)
        if len(everything) < 2:
            raise ValueError("KoLeo compares each sample with its nearest neighbour; a batch of 1 has none")
        with torch.no_grad():
            # |a - b|^2 - |a|^2, of rows about their mean: cosines near 1 would differ by less than float32 can tell.
            mean = everything.mean(dim=0)
            others = everything - mean
            distances = others.square().sum(dim=1) - 2.0 * (x - mean) @ others.T
            own = rank() * len(x) + torch.arange(len(x), device=x.device)
            nearest = distances.scatter_(1, own.unsqueeze(1), float("inf")).argmin(dim=1)
        distance = torch.linalg.vector_norm(x - everything[nearest], dim=1)
        return -torch.log(distance + _EPS).mean()
