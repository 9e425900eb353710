"""Multi-block masking: from one large block of patches, without those of the targets, several smaller blocks are to be
predicted (I-JEPA, Assran et al. 2023, arXiv 2301.08243, section 3 and figure 4)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from heliostat_algorithms.randomness import Random

ATTEMPTS = 20
"""Places that are tried for a context before it may keep the patches of one more target, as in the official code."""

_SWEEP = [i / 100 for i in range(100)] + [1 - 2**-24]
"""Draws from which ``MultiBlockMasking.check`` finds out how large blocks may become."""


class BlockMasks(NamedTuple):
    """Patches, as places on the grid, row by row; on the CPU."""

    context: Tensor
    """(B, K) int64, rising: what the context encoder sees of each image."""
    targets: Tensor
    """(M, B, T) int64, rising: the M blocks of each image that are predicted. They may overlap one another."""
    overlapping: Tensor
    """(B,) bool: images whose context shows patches of a target, because no other context was large enough."""


@dataclass(frozen=True, kw_only=True)
class MultiBlockMasking:
    """One context and several targets for each image. The defaults are the paper's (appendix A).

    The blocks' sizes are drawn once for the whole batch, their places for each image. What the targets cover is taken
    out of the context, and the contexts are cut to the smallest one of the global batch, so that all are tensors.
    """

    target_blocks: int = 4
    """M, targets of each image."""
    target_scale: tuple[float, float] = (0.15, 0.2)
    """Smallest and largest share of the patches that a target covers."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest ratio of a target's height to its width."""
    context_scale: tuple[float, float] = (0.85, 1.0)
    """Smallest and largest share of the patches that the context's block covers. It is a square, cut to the grid."""
    min_keep: int = 10
    """A context must have more patches than this once the targets are taken out, or is placed anew, 20 times; then it
    may keep the patches of the last target, after 20 more places those of the last two, and so on. Lower it for grids
    smaller than 14 x 14: 2 or 3 for 4 x 4."""
    sampler: Literal["faithful", "corrected"] = "faithful"
    """``faithful``: the official code, whose blocks never reach the last row and column of patches, whose contexts lose
    their bottom rows where they are cut, and whose large targets are always the high ones. ``corrected``: blocks lie
    anywhere, a cut takes patches at random, size and shape are drawn apart."""

    def __post_init__(self) -> None:
        if self.target_blocks < 1:
            raise ValueError(f"target_blocks is {self.target_blocks}; it must be at least 1")
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} is {(low, high)}; it must be two shares above 0 and at most 1, smaller first")
        if not 0 < self.target_aspect[0] <= self.target_aspect[1] < math.inf:
            raise ValueError(f"target_aspect is {self.target_aspect}; it must be two positive ratios, smaller first")
        if self.min_keep < 0:
            raise ValueError(f"min_keep is {self.min_keep}; it cannot be negative")

    def check(self, grid: tuple[int, int]) -> None:
        """Whether there can be such blocks on a grid (down, across).

        Raises:
            ValueError: a target would be empty, or larger than the grid, or no context would be large enough.
        """
        name = f"a grid of {grid[0]} x {grid[1]} patches"
        reach = self._reach(grid)
        pairs = zip(_SWEEP, _SWEEP, strict=True) if self.sampler == "faithful" else itertools.product(_SWEEP, _SWEEP)
        targets = {self.target_size(of_scale, of_aspect, grid) for of_scale, of_aspect in pairs}
        if any(0 in size for size in targets):
            low = self.target_scale[0]
            raise ValueError(f"targets of {low} of {name} may be empty; raise target_scale or take smaller patches")
        for height, width in sorted(targets):
            if height > reach[0] or width > reach[1]:
                raise ValueError(
                    f"targets may be {height} x {width} patches large, but on {name} the {self.sampler} sampler has "
                    f"room for {reach[0]} x {reach[1]}; lower target_scale or narrow target_aspect"
                )
        target, context = max(math.prod(size) for size in targets), math.prod(self.context_size(0.0, grid))
        most = min(context, math.prod(reach) - target)
        if most <= self.min_keep:
            raise ValueError(
                f"on {name} a context may have no more than {max(most, 0)} patches beside a target of {target}, but "
                f"min_keep asks for more than {self.min_keep}; lower min_keep or target_scale, or raise context_scale"
            )

    def target_size(self, of_scale: float, of_aspect: float, grid: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the targets for two draws from [0, 1)."""
        return _size(_between(self.target_scale, of_scale), _between(self.target_aspect, of_aspect), grid)

    def context_size(self, of_scale: float, grid: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the context's block for a draw from [0, 1)."""
        height, width = _size(_between(self.context_scale, of_scale), 1.0, grid)
        return min(height, self._reach(grid)[0]), min(width, self._reach(grid)[1])

    def __call__(self, random: Random, batch_size: int, grid: tuple[int, int]) -> BlockMasks:
        """Masks for this worker's images. All workers draw the blocks of the whole batch, to know its smallest context.

        Args:
            random: draws for this worker's rows of the global batch.
            batch_size: rows of the global batch.
            grid: patches (down, across) of an image.

        Raises:
            ValueError: blocks of the sizes that were drawn do not fit the grid; ``check`` says so beforehand.
        """
        own = Random(random.seed, random.step, random.rows, "cpu", random.scope)
        whole, rows = own.whole(batch_size), slice(own.rows.start, own.rows.stop)
        of_scale, of_aspect, of_context = whole.shared().uniform("sizes", 3)[0].tolist()
        if self.sampler == "faithful":
            of_aspect = of_scale
        size = self.target_size(of_scale, of_aspect, grid)
        high = self._places(size, grid)
        if min(*size, *high) < 1:
            raise ValueError(f"targets of {size[0]} x {size[1]} patches do not fit a grid of {grid[0]} x {grid[1]}")
        top, left = (whole.integers(f"target_{axis}", high[i], self.target_blocks) for i, axis in enumerate("yx"))
        covered = _blocks(top, left, size, grid)
        unions = [torch.zeros_like(covered[:, 0])]
        for target in covered.unbind(1):
            unions.append(unions[-1] | target)
        contexts = self._contexts(whole, unions, self.context_size(of_context, grid), grid).flatten(1)

        keep = int(contexts.sum(dim=1).min())
        context = self._cut(own, contexts[rows], keep)
        inside = torch.arange(size[0])[:, None] * grid[1] + torch.arange(size[1])
        corners = (top[rows] * grid[1] + left[rows]).T
        targets = corners.unsqueeze(2) + inside.flatten()
        overlapping = unions[-1][rows].flatten(1).gather(1, context).any(dim=1)
        return BlockMasks(context, targets, overlapping)

    def _contexts(self, random: Random, unions: list[Tensor], size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """(B, down, across) bool: the context's blocks without what the targets cover; ``unions``, each of this shape,
        is what the first 0 to M of them cover."""
        high = self._places(size, grid)
        attempts = 1 if high == (1, 1) else ATTEMPTS  # a block that has one place alone is not moved by trying again
        contexts = torch.zeros_like(unions[0])
        pending = torch.arange(len(contexts))
        for attempt in range(attempts * self.target_blocks + 1):
            top, left = (random.integers(f"context_{axis}{attempt}", high[i])[pending] for i, axis in enumerate("yx"))
            taken_out = unions[self.target_blocks - attempt // attempts][pending]
            context = _blocks(top, left, size, grid) & ~taken_out
            contexts[pending] = context
            pending = pending[context.flatten(1).sum(dim=1) <= self.min_keep]
            if not len(pending):
                return contexts
        raise ValueError(
            f"a context of {size[0]} x {size[1]} patches does not have more than min_keep = {self.min_keep}; lower "
            "min_keep, raise context_scale or take smaller patches"
        )

    def _cut(self, random: Random, contexts: Tensor, keep: int) -> Tensor:
        """(B, N) bool -> (B, keep) int64: so many patches of each context."""
        if self.sampler == "faithful":
            chosen = contexts & (contexts.cumsum(dim=1) <= keep)
        else:  # those with the smallest draws; the patch's own number in the last 16 bits makes all draws differ
            patches = contexts.shape[1]
            draws = random.bits("cut", patches).bitwise_and_(-1 << 16).add_(torch.arange(patches))
            draws.masked_fill_(~contexts, torch.iinfo(torch.int64).max)
            chosen = draws <= draws.kthvalue(keep, dim=1, keepdim=True).values
        return chosen.nonzero()[:, 1].view(-1, keep)

    def _places(self, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
        """How many rows a block of this size may begin at, and how many columns."""
        down, across = self._reach(grid)
        return down - size[0] + 1, across - size[1] + 1

    def _reach(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The part of the grid where blocks may lie; the official code leaves out its last row and column."""
        beyond = int(self.sampler == "faithful")
        return grid[0] - beyond, grid[1] - beyond


def _between(ends: tuple[float, float], draw: float) -> float:
    return ends[0] + draw * (ends[1] - ends[0])


def _size(share: float, aspect: float, grid: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a block of about this share of the grid and this ratio of height to width."""
    patches = int(math.prod(grid) * share)
    return round(math.sqrt(patches * aspect)), round(math.sqrt(patches / aspect))


def _blocks(top: Tensor, left: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """First rows and columns (...) -> (..., down, across) bool, true inside the block."""
    rows, columns = (torch.arange(side) - first.unsqueeze(-1) for side, first in zip(grid, (top, left), strict=True))
    inside_rows, inside_columns = (rows >= 0) & (rows < size[0]), (columns >= 0) & (columns < size[1])
    return inside_rows.unsqueeze(-1) & inside_columns.unsqueeze(-2)
