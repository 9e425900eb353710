"""Sinkhorn-Knopp: targets that use all prototypes alike (Cuturi 2013, arXiv 1306.0895; SwAV, 2006.09882, section 3.1;
DINOv2, 2304.07193, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from heliostat_algorithms.collectives import gather_rows, sum_over_workers


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """The teacher's distributions, pushed towards equal use of the prototypes by the rows of the *global* batch.

    Of Q = exp(logits / temperature), columns (prototypes) are scaled to sums of M / K and then rows (samples) to sums
    of 1, three times over. Each scaling is a factor per column or row, so that Q is read but never rewritten:

        u_k = M / K / sum_i Q_ik v_i        v_i = 1 / sum_k Q_ik u_k        result_ik = Q_ik u_k v_i

    M counts the rows of all workers, who may hold different numbers of them, also none, as of masked patches. (The
    official code scales to 1 / K and 1 / M, and multiplies by M in the end: the same numbers.)

    Args:
        logits: (rows, K), those of this worker.
        temperature: that of the teacher.
        iterations: how often both are scaled; 3 in SwAV and DINOv2.

    Returns:
        (rows, K), float32 at least, without gradient. Rows are distributions; the sums of columns are equal only as far
        as so few iterations go.

    Raises:
        ValueError: fewer than 1 iteration.
    """
    if iterations < 1:
        raise ValueError(f"{iterations} iterations were asked for; it takes at least 1")
    with torch.autocast(logits.device.type, enabled=False):
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        # Each row is divided by its largest element, which v makes good for. Thus no exponential overflows, and no row
        # underflows as a whole.
        peak = scores.amax(dim=1)
        q = torch.exp(scores - peak.unsqueeze(1))
        largest = torch.cat([peak, peak.new_full((1,), float("-inf"))]).amax()
        all_largest, counts = gather_rows(torch.stack([largest, largest.new_tensor(len(q))]).unsqueeze(0)).unbind(1)
        v = torch.exp(peak - all_largest.amax())
        fair = counts.sum() / q.shape[1]
        tiny = torch.finfo(q.dtype).tiny  # a prototype that nothing is near keeps 0 instead of 0 / 0
        for _ in range(iterations):
            u = fair / sum_over_workers(q.T @ v).clamp_min(tiny)
            v = 1.0 / (q @ u).clamp_min(tiny)
        return q.mul_(u).mul_(v.unsqueeze(1))
