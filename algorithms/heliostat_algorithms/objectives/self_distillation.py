"""Self-distillation: the student predicts the teacher's distribution over prototypes for other views of the image.

DINO, Caron et al. 2021 (arXiv 2104.14294, equations 1 to 3 and algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.collectives import mean_over_workers


def _wide(x: Tensor) -> torch.dtype:
    """float32 at least: half precision has too few digits for temperatures of a few hundredths."""
    return torch.promote_types(x.dtype, torch.float32)


def self_distillation(
    student_logits: Sequence[Tensor], teacher_probabilities: Sequence[Tensor], student_temperature: float
) -> Tensor:
    """Mean cross-entropy over all pairs of a teacher's view and another view of the student (equation 3).

        1 / terms * sum over t, s != t of mean over images of -sum_k q_t[k] * log softmax(z_s / temperature)[k]

    Args:
        student_logits: z, (B, K) for each view: the global views first, in the teacher's order, then the local ones.
        teacher_probabilities: q, (B, K) for each global view, without gradient.
        student_temperature: 0.1 in the paper.

    Raises:
        ValueError: there is no pair of different views.
    """
    teachers = len(teacher_probabilities)
    terms = sum(teachers - (view < teachers) for view in range(len(student_logits)))
    if terms == 0:
        raise ValueError(
            f"{len(student_logits)} views of the student and {teachers} of the teacher make no pair of different views"
        )
    with torch.autocast(student_logits[0].device.type, enabled=False):
        dtype = _wide(student_logits[0])
        q = torch.stack([probabilities.to(dtype) for probabilities in teacher_probabilities])
        everything = q.sum(dim=0)
        total = torch.zeros((), dtype=dtype, device=q.device)
        for view, logits in enumerate(student_logits):
            # The cross-entropy is linear in q: one pass over a view's logits serves all its targets.
            targets = everything if view >= teachers else q[:view].sum(dim=0) + q[view + 1 :].sum(dim=0)
            total = total + F.cross_entropy(logits.to(dtype) / student_temperature, targets)
    return total / terms


@torch.no_grad()
def centred_probabilities(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """softmax((logits - centre) / temperature), the teacher's distributions, in float32 at least.

    Args:
        logits: (M, K).
        centre: (1, K), a running mean of the teacher's logits.
        temperature: below the student's, which sharpens.
    """
    with torch.autocast(logits.device.type, enabled=False):
        dtype = _wide(logits)
        return F.softmax((logits.to(dtype) - centre.to(dtype)) / temperature, dim=-1)


@torch.no_grad()
def teacher_signals(probabilities: Tensor) -> dict[str, Tensor]:
    """Two signs of collapse (section 5.3), over the rows of all workers and the same on each.

    Args:
        probabilities: (M, K), the teacher's distributions for this worker's M views.

    Returns:
        ``teacher_entropy``, the mean entropy of a distribution in nats: log K where all are uniform, 0 where each
        chooses one prototype. ``teacher_kl_uniform``, the divergence (nats) of their mean from the uniform
        distribution: 0 where prototypes are used alike, log K where one takes all.
    """
    p = probabilities.to(_wide(probabilities))
    entropy = torch.special.entr(p).sum(dim=1).mean()
    means = mean_over_workers(torch.cat([p.mean(dim=0), entropy.view(1)]))  # one exchange for both
    prototypes = means[:-1]
    kl_uniform = torch.log(prototypes.new_tensor(len(prototypes))) - torch.special.entr(prototypes).sum()
    return {"teacher_entropy": means[-1], "teacher_kl_uniform": kl_uniform}
