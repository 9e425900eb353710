"""The loss of masked patches: iBOT, Image BERT Pre-Training with Online Tokenizer, Zhou et al. 2021 (arXiv 2111.07832,
equation 2), as DINOv2 weighs it (2304.07193, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_patch_loss(
    student_logits: Tensor, teacher_probabilities: Tensor, masked: Tensor, places: Tensor, temperature: float
) -> Tensor:
    """From its mask tokens the student predicts what the teacher, which sees all, says of the hidden patches.

        1 / crops * sum over crops of 1 / (hidden patches of the crop) * sum over them of -sum_k q[k] * log p[k]

    Args:
        student_logits: (P, K), of hidden patches; p is their softmax at the temperature.
        teacher_probabilities: q, (P, K), without gradient.
        masked: (crops, N) bool; crops in which nothing is hidden add nothing, but are counted.
        places: (P,), where the hidden patches are among all crops * N.
        temperature: the student's, 0.1.

    Returns:
        The mean over this worker's crops.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        logits = student_logits.to(torch.promote_types(student_logits.dtype, torch.float32))
        losses = F.cross_entropy(logits / temperature, teacher_probabilities.to(logits.dtype), reduction="none")
        hidden = masked.sum(dim=1).index_select(0, places // masked.shape[1])
        return (losses / hidden).sum() / len(masked)
