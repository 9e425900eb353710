"""Softmax cross-entropy of similarities, tile by tile: the full matrix is never held, forward or backward.

The logits of M anchors and N candidates are an (M, N) matrix, and a plain loss keeps it and its softmax for the
backward pass: at 65,536 images, 131,072 views a side, 69 GB each in float32. Here a tile of logits is made, used and
thrown away; what remains of each row are a few numbers (the softmax "online", Milakov and Gimelshein 2018, arXiv
1805.02867). The backward pass makes each tile once more, now with the row's known normaliser, as in FlashAttention
(2205.14135) and in Inf-CL (2410.17243). So memory grows with M + N, at the price of computing the logits twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Found(NamedTuple):
    """What each anchor made of its candidates, (M,) each; the loss alone carries gradient."""

    loss: Tensor
    """-log of the positive's probability."""
    entropy: Tensor
    """Of the anchor's distribution over candidates, in nats."""
    first: Tensor
    """bool: whether the positive is more similar than all others."""


def tiled_cross_entropy(
    anchors: Tensor, candidates: Tensor, positive: Tensor, own: Tensor | None, temperature: float, tile: int
) -> Found:
    """Each anchor must find its positive among the candidates, by a softmax over anchors @ candidates.T / temperature.

    Args:
        anchors: (M, D); call it outside autocast, in float32 at least.
        candidates: (N, D), of the same type.
        positive: (M,) int64, which candidate each anchor must find.
        own: (M,) int64, the candidate that is the anchor itself and is left out; None: none is.
        temperature: above 0.
        tile: rows and columns of a tile, which is what is held of the matrix at once.

    Raises:
        ValueError: a tile holds nothing.
    """
    if tile < 1:
        raise ValueError(f"tile is {tile}; it must be at least 1")
    return Found(*_Tiled.apply(anchors, candidates, positive, own, temperature, tile))  # type: ignore[no-untyped-call]


def check_tile(tile: int | None) -> None:
    """For configs.

    Raises:
        ValueError: a tile would hold nothing.
    """
    if tile is not None and tile < 1:
        raise ValueError(f"tile is {tile}; it must be at least 1, or null for the whole matrix at once")


def _slices(length: int, tile: int) -> Iterator[slice]:
    return (slice(start, min(start + tile, length)) for start in range(0, length, tile))


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        positive: Tensor,
        own: Tensor | None,
        temperature: float,
        tile: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        losses, entropies, firsts, normalizers = [], [], [], []
        for rows in _slices(len(anchors), tile):
            some, aim = anchors[rows], positive[rows].unsqueeze(1)
            # All exponents are taken from the largest logit so far. The positive's is a finite one to begin with.
            largest = (some * candidates[positive[rows]]).sum(dim=1) / temperature
            total, weighted = torch.zeros_like(largest), torch.zeros_like(largest)
            hit, rival = torch.zeros_like(largest), torch.full_like(largest, float("-inf"))
            for columns in _slices(len(candidates), tile):
                logits = _logits(some, candidates, own, rows, columns, temperature)
                new = torch.maximum(largest, logits.amax(dim=1))
                gap, largest = largest - new, new
                shifted = logits - new.unsqueeze(1)
                weights = shifted.exp()
                # sum of e^x and of x e^x, with x counted from the new maximum; a left-out candidate adds 0, not 0 * inf
                weighted = gap.exp() * (weighted + gap * total) - torch.special.entr(weights).sum(dim=1)
                total = gap.exp() * total + weights.sum(dim=1)
                found = torch.arange(columns.start, columns.stop, device=aim.device) == aim
                hit += torch.where(found, logits, 0.0).sum(dim=1)
                rival = torch.maximum(rival, logits.masked_fill_(found, float("-inf")).amax(dim=1))
            spread = total.log()
            losses.append(spread + (largest - hit))
            entropies.append(spread - weighted / total)
            firsts.append(hit > rival)
            normalizers.append(largest + spread)
        ctx.save_for_backward(anchors, candidates, positive, own, torch.cat(normalizers))
        ctx.temperature, ctx.tile = temperature, tile
        entropy, first = torch.cat(entropies), torch.cat(firsts)
        ctx.mark_non_differentiable(entropy, first)
        return torch.cat(losses), entropy, first

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        anchors, candidates, positive, own, normalizers = ctx.saved_tensors
        of_anchors = torch.zeros_like(anchors) if ctx.needs_input_grad[0] else None
        of_candidates = torch.zeros_like(candidates) if ctx.needs_input_grad[1] else None
        with torch.autocast(anchors.device.type, enabled=False):
            for rows in _slices(len(anchors), ctx.tile):
                some, aim = anchors[rows], positive[rows].unsqueeze(1)
                scale = (gradient[rows] / ctx.temperature).unsqueeze(1)
                for columns in _slices(len(candidates), ctx.tile):
                    logits = _logits(some, candidates, own, rows, columns, ctx.temperature)
                    # d loss / d logit: the probability, less 1 for the positive
                    slope = logits.sub_(normalizers[rows].unsqueeze(1)).exp_()
                    slope -= (torch.arange(columns.start, columns.stop, device=aim.device) == aim).to(slope.dtype)
                    slope *= scale
                    if of_anchors is not None:
                        of_anchors[rows].addmm_(slope, candidates[columns])
                    if of_candidates is not None:
                        of_candidates[columns].addmm_(slope.T, some)
        return of_anchors, of_candidates, None, None, None, None


def _logits(
    anchors: Tensor, candidates: Tensor, own: Tensor | None, rows: slice, columns: slice, temperature: float
) -> Tensor:
    """One tile, of new memory; -inf where an anchor would meet itself."""
    logits = (anchors @ candidates[columns].T).div_(temperature)
    if own is not None:
        itself = torch.arange(columns.start, columns.stop, device=own.device) == own[rows].unsqueeze(1)
        logits.masked_fill_(itself, float("-inf"))
    return logits
