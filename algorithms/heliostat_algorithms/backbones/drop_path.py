"""Stochastic depth: Deep Networks with Stochastic Depth, Huang et al. 2016 (arXiv 1603.09382), one decision per sample.

A network of residual blocks x + f(x) trains with some of its branches f left out. Which ones is drawn before the step
as a table ``keep`` (B, branches) of factors: 0 where this sample leaves the branch out, otherwise the reciprocal of the
share that keeps it, so that the expectation is that of the whole network. (The paper scales at test time instead.) The
table stays on the CPU: what is left out is then known without waiting for the device, and is not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from heliostat_algorithms.randomness import Random


def linear_rates(rate: float, depth: int) -> list[float]:
    """The share of samples that leave out each of 2 * depth branches, two in each block: from 0 in the first block to
    ``rate`` in the last, as in DINO's code. The paper's own rule (equation 4) begins with rate / depth."""
    _check(rate)
    return [rate * (branch // 2) / max(depth - 1, 1) for branch in range(2 * depth)]


def uniform_rates(rate: float, depth: int) -> list[float]:
    """The same share for all 2 * depth branches, as DINOv2 trains its large networks."""
    _check(rate)
    return [rate] * (2 * depth)


def draw_keep(
    random: Random,
    rates: Sequence[float],
    mode: Literal["sample", "subset"] = "sample",
    batch_size: int | None = None,
) -> Tensor:
    """Factors (rows, branches) float32 of this worker's rows, on the CPU.

    Args:
        random: the rows; one scope for each view that goes through the network.
        rates: for each branch the share of samples that leave it out, in [0, 1).
        mode: "sample": each sample decides for itself. "subset": as in DINOv2, each branch keeps exactly
            round(B * (1 - rate)) of the global batch's B samples, at least 1, with the factor B / kept. (DINOv2's code
            rounds down, and does so in each worker's share of the batch.)
        batch_size: B, for "subset".
    """
    for rate in rates:
        _check(rate)
    random = Random(random.seed, random.step, random.rows, "cpu", random.scope)
    if mode == "sample":
        shares = torch.tensor(rates, dtype=torch.float64)
        kept = random.uniform("keep", len(rates)).double() >= shares
        return (kept / (1.0 - shares)).float()
    if batch_size is None:
        raise ValueError("subsets are drawn from the global batch; give its batch_size")
    counts = torch.tensor([max(round(batch_size * (1.0 - rate)), 1) for rate in rates])
    order = torch.argsort(random.whole(batch_size).bits("keep", len(rates)), dim=0, stable=True)
    places = torch.argsort(order, dim=0)  # the place of each sample in a random order of the batch, for each branch
    mine = places[random.rows.start : random.rows.stop]
    return ((mine < counts) * (batch_size / counts.double())).float()


def _check(rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"a drop path rate is {rate}; it must be at least 0 and below 1")


class Kept(NamedTuple):
    """What a residual branch computes of a batch."""

    rows: Tensor | None
    """(K,) int64, the samples it computes; None: all."""
    factors: Tensor
    """(K, 1, 1), or (B, 1, 1) for all."""


def kept_rows(keep: Tensor, like: Tensor) -> list[Kept | None]:
    """What each branch computes, on the device and in the type of ``like``; None: everything, unscaled.

    Where ``keep`` (B, branches) is not on the CPU, every branch computes all rows: to look at the factors would be to
    wait for the device.
    """
    table = keep.T
    if keep.device.type != "cpu":
        return [Kept(None, column.view(-1, 1, 1)) for column in table.to(like)]
    chosen = table != 0
    # A branch that no sample of this worker keeps computes one, times 0: the gradients of its parameters are zero on
    # this worker, not missing.
    chosen[~chosen.any(dim=1), 0] = True
    counts = chosen.sum(dim=1).tolist()
    untouched = (table == 1).all(dim=1).tolist()
    rows = torch.split(_move(chosen.nonzero()[:, 1], like.device), counts)
    factors = torch.split(_move(table[chosen].to(like.dtype).view(-1, 1, 1), like.device), counts)
    plan: list[Kept | None] = []
    for branch, count in enumerate(counts):
        everything = count == len(keep)
        plan.append(None if untouched[branch] else Kept(None if everything else rows[branch], factors[branch]))
    return plan


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], kept: Kept | None, outputs: int | None = None) -> Tensor:
    """x + factor * branch(x) for x (B, N, D); samples that ``kept`` leaves out go unchanged and are not computed.

    ``outputs``: the branch gives only the first so many of the N tokens, and so does the sum.
    """
    shortcut = x[:, :outputs]
    if kept is None:
        return shortcut + branch(x)
    if kept.rows is None:
        return shortcut + branch(x) * kept.factors
    y = branch(x.index_select(0, kept.rows)) * kept.factors
    return shortcut.index_add(0, kept.rows, y.to(x.dtype))
