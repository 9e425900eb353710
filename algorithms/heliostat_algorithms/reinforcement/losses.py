"""Losses of Q-learning, one number for each row: of values, of distributions on fixed atoms, of quantiles.

In all of them a transition's target is T z = reward + bootstrap * z for what was estimated of the next observation;
``reward`` is the n-step return and ``bootstrap`` the discount to the n-th power, or 0 where the episode ended. Nothing
here stops gradients: targets come without.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def huber(error: Tensor, delta: float) -> Tensor:
    """e^2 / 2 up to |e| = ``delta``, then delta (|e| - delta / 2): its slope is the error clipped to +-delta, which is
    what the 2015 paper means by clipping the error term to +-1. Infinite ``delta``: half the square throughout, whose
    slope is the error, as in equation 3 of the 2013 paper."""
    if math.isinf(delta):
        return 0.5 * error.square()
    return F.huber_loss(error, error.new_zeros(()).expand_as(error), reduction="none", delta=delta)


def projected(probabilities: Tensor, reward: Tensor, bootstrap: Tensor, atoms: Tensor) -> Tensor:
    """The projection of C51 (Bellemare et al. 2017, arXiv 1707.06887, equation 7): each atom's mass moves to T z,
    clipped to the range of the atoms, and is shared out between its two neighbours, the nearer getting more.

    Written as a sum over all pairs of atoms. That is little at 51 of them, and sums in a fixed order, where scattered
    additions on an accelerator do not.

    Args:
        probabilities: (B, N) of the next observation's chosen action.
        reward: (B,).
        bootstrap: (B,).
        atoms: (N,), rising, equally far apart.

    Returns:
        (B, N); rows sum to 1.
    """
    low, high = atoms[0], atoms[-1]
    spacing = (high - low) / (len(atoms) - 1)
    moved = torch.addcmul(reward.unsqueeze(1), bootstrap.unsqueeze(1), atoms).clamp(low, high)
    shares = (moved.unsqueeze(1) - atoms.unsqueeze(1)).abs_().div_(-spacing).add_(1).clamp_(min=0)  # (B, to, from)
    return torch.bmm(shares, probabilities.unsqueeze(2)).squeeze(2)


def categorical_divergence(target: Tensor, logits: Tensor) -> Tensor:
    """(B,): KL(target || softmax(logits)), both (B, N). Its gradient is that of the cross-entropy, from which it
    differs by the target's entropy; it is 0 where the prediction is right, and what Rainbow takes as priority."""
    return (torch.xlogy(target, target) - target * F.log_softmax(logits, dim=1)).sum(dim=1)


def quantile_huber(target: Tensor, quantiles: Tensor, kappa: float) -> Tensor:
    """Quantile regression (Dabney et al. 2017, arXiv 1710.10044, equation 10 and algorithm 1): with
    u_ij = target_j - quantile_i and midpoints t_i = (i - 1/2) / N, the sum over i of the mean over j of

        |t_i - 1[u_ij < 0]| * huber(u_ij, kappa) / kappa

    Divided by ``kappa``, as in the paper on implicit quantiles (arXiv 1806.06923), so that it tends to the plain
    quantile loss |t_i - 1[u_ij < 0]| * |u_ij|, which is what ``kappa`` 0 gives.

    Args:
        target: (B, M), samples of the target distribution.
        quantiles: (B, N).
        kappa: where the loss goes over from square to linear.

    Returns:
        (B,).
    """
    count = quantiles.shape[1]
    midpoints = (torch.arange(count, dtype=quantiles.dtype, device=quantiles.device) + 0.5).div_(count).unsqueeze(1)
    error = target.unsqueeze(1) - quantiles.unsqueeze(2)  # (B, N, M)
    size = huber(error, kappa) if kappa else error.abs()
    pairs = torch.where(error.detach() < 0, 1 - midpoints, midpoints) * size
    return pairs.sum(dim=(1, 2)) / (target.shape[1] * (kappa or 1.0))
