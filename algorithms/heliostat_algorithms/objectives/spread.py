"""How far apart the outputs of a batch lie: the signal by which every method notices a collapse while it trains."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.collectives import gather_rows


@torch.no_grad()
def spread(rows: Tensor) -> Tensor:
    """Standard deviation of each dimension of the L2-normalised rows of the *global* batch, averaged, times sqrt(D):
    0 where all samples look alike, 1 for directions without preference (Chen and He 2021, arXiv 2011.10566, section
    4.1). The same on every worker.

    Args:
        rows: (B, D) this worker's outputs.
    """
    rows = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
    unit = F.normalize(gather_rows(rows), dim=1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(unit.shape[1])
