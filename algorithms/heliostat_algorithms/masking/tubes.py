"""Tube masks of V-JEPA (Bardes et al. 2024, arXiv 2404.08471, section 3.2): blocks of patches, hidden in all frames of
a clip, so that what is behind them cannot be looked up in another frame.

All clips of a batch pass the network together, so their masks must be equally large. The official code cuts the masks
of the 24 clips of each GPU to the smallest of them and keeps the first patches, counted from the first frame: late
frames and bottom rows lose most. ``sampler: corrected`` takes whole tubes by chance instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from heliostat_algorithms.randomness import Random

TRIES = 20
"""How often the blocks of a clip are drawn, until they leave something to be seen and suit the sizes of the masks.
Then a clip of the leading group hides the first block alone, and any other clip takes over the mask of one of these.
With the paper's numbers this is rare; a coarse grid may need it."""


class TubeMasks(NamedTuple):
    """Places of patches, counted frame by frame, row by row; rising in each row, on the CPU."""

    context: Tensor
    """(rows, K) int64: what the context encoder sees."""
    targets: Tensor
    """(rows, M) int64: what is to be predicted."""


@dataclass(frozen=True, kw_only=True)
class TubeMasking:
    """One kind of mask: the union of some blocks, all of one size in a step, hidden in all frames of a clip."""

    blocks: int = 8
    """How many; 8 in V-JEPA's short-range masks, 2 in the long-range ones. They may overlap."""
    scale: float = 0.15
    """Share of a frame that one block covers, above 0 and below 1; 0.15 (short range) and 0.7 (long range)."""
    aspect: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest ratio of a block's height to its width; drawn uniformly once in a step, for all clips."""
    group: int = 24
    """How many clips decide how large the masks of a step are: as large as the smallest among the first so many of the
    global batch. The blocks of the others are drawn again until they can be cut to that. 24 as in the official code,
    where each GPU cuts its own clips; the smallest of thousands would leave little to be seen."""
    sampler: Literal["faithful", "corrected"] = "faithful"
    """Which patches stay where a clip has more than the smallest mask. ``faithful``: the first ones, as in the
    official code, so that the last frames are seldom seen. ``corrected``: whole tubes, taken by chance, so that masks
    last as long as the clip and no row of patches is left out more often than its neighbours."""

    def __post_init__(self) -> None:
        for name in ("blocks", "group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.scale < 1:
            raise ValueError(f"scale is {self.scale}; it is a share of a frame, above 0 and below 1")
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise ValueError(f"aspect is {self.aspect}; it must be two positive ratios, the smaller first")

    def check(self, size: tuple[int, int]) -> None:
        """Whether frames of so many patches (down, across) can be masked.

        Raises:
            ValueError: a block may hide nothing, or a whole frame.
        """
        lowest, highest = (self.block_size(aspect, size) for aspect in self.aspect)
        if lowest[0] < 1 or highest[1] < 1:
            raise ValueError(
                f"a block of {self.scale:g} of {size[0]} x {size[1]} patches may be smaller than a patch; use smaller "
                "patches, larger frames or a larger scale"
            )
        # Heights grow with the aspect and widths shrink: a block may cover all if the two come together somewhere.
        area = int(size[0] * size[1] * self.scale)
        tall, wide = (size[0] - 0.5) ** 2 / area, area / (size[1] - 0.5) ** 2
        if max(tall, self.aspect[0]) <= min(wide, self.aspect[1]):
            raise ValueError(
                f"a block of {self.scale:g} of {size[0]} x {size[1]} patches may hide a whole frame, which leaves "
                "nothing to predict it from; use smaller patches, larger frames or a smaller scale"
            )

    def block_size(self, aspect: float, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the blocks in patches, for frames of so many patches (down, across)."""
        area = int(size[0] * size[1] * self.scale)
        return min(round(math.sqrt(area * aspect)), size[0]), min(round(math.sqrt(area / aspect)), size[1])

    def __call__(self, random: Random, batch_size: int, grid: tuple[int, int, int]) -> TubeMasks:
        """Masks for this worker's clips.

        Args:
            random: draws for this worker's rows of the global batch.
            batch_size: rows of the global batch.
            grid: patches in depth (time), down and across.
        """
        depth, place = grid[0], grid[1] * grid[2]
        everyone = self.hidden(random, batch_size, grid[1:])
        counts = everyone.sum(dim=1)
        # How many tubes all clips can give.
        to_predict, to_see = int(counts.min()), place - int(counts.max())
        hidden = everyone[random.rows.start : random.rows.stop]
        if self.sampler == "faithful":
            hidden = hidden.repeat(1, depth)
            order = torch.arange(depth * place).expand(len(hidden), -1)
            return TubeMasks(_take(~hidden, order, depth * to_see), _take(hidden, order, depth * to_predict))
        own = Random(random.seed, random.step, random.rows, "cpu", random.scope)
        context = _take(~hidden, own.permutation("context", place), to_see)
        targets = _take(hidden, own.permutation("targets", place), to_predict)
        start = place * torch.arange(depth).view(1, -1, 1)
        return TubeMasks(*((start + tubes.unsqueeze(1)).flatten(1) for tubes in (context, targets)))

    def hidden(self, random: Random, batch_size: int, size: tuple[int, int]) -> Tensor:
        """(batch_size, down * across) bool on the CPU: the union of each clip's blocks, for the whole global batch.
        None hides more, or less, than the clips of the leading group."""
        draws = Random(random.seed, random.step, range(batch_size), "cpu", random.scope)
        hidden = torch.empty(batch_size, size[0] * size[1], dtype=torch.bool)
        leading = min(self.group, batch_size)
        blind = self._fill(hidden, torch.arange(leading), draws, size, range(1, hidden.shape[1]))
        hidden[blind] = self._blocks(draws, 0, size, blind)[:, 0]
        counts = hidden[:leading].sum(dim=1)
        suitable = range(int(counts.min()), int(counts.max()) + 1)
        unsuitable = self._fill(hidden, torch.arange(leading, batch_size), draws, size, suitable)
        hidden[unsuitable] = hidden[unsuitable % leading]
        return hidden

    def _fill(self, hidden: Tensor, rows: Tensor, draws: Random, size: tuple[int, int], suitable: range) -> Tensor:
        """Draw the blocks of some rows until they hide a suitable number of patches; gives back the rows for which they
        never do."""
        for attempt in range(TRIES):
            if not len(rows):
                break
            union = self._blocks(draws, attempt, size, rows).any(dim=1)
            hidden[rows] = union
            counts = union.sum(dim=1)
            rows = rows[(counts < suitable.start) | (counts >= suitable.stop)]
        return rows

    def _blocks(self, draws: Random, attempt: int, size: tuple[int, int], rows: Tensor) -> Tensor:
        """(rows, blocks, down * across) bool: what each block of some rows hides, at an attempt to place them."""
        low, high = self.aspect
        height, width = self.block_size(low + (high - low) * float(draws.shared().uniform("aspect")), size)
        place = draws.uniform(f"place{attempt}", self.blocks, 2)[rows].double()  # else u * n might round up to n
        top, left = (place * torch.tensor([size[0] - height + 1, size[1] - width + 1])).floor().unbind(2)
        down, across = (torch.arange(side) - start.unsqueeze(2) for side, start in zip(size, (top, left), strict=True))
        inside = ((down >= 0) & (down < height)).unsqueeze(3) & ((across >= 0) & (across < width)).unsqueeze(2)
        return inside.flatten(2)


def _take(members: Tensor, order: Tensor, count: int) -> Tensor:
    """(rows, count) int64, rising: the first so many members (rows, P) of each row, by an order (rows, P) of its own;
    there are enough of them."""
    ranked = torch.argsort((~members.gather(1, order)).to(torch.uint8), dim=1, stable=True)
    return order.gather(1, ranked[:, :count]).sort(dim=1).values
