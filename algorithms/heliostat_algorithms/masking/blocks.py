"""Block masking: rectangles of patches, until a share of the image is hidden (BEiT, Bao et al. 2021, arXiv 2106.08254,
algorithm 1; iBOT, 2111.07832; DINOv2, 2304.07193)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliostat_algorithms.randomness import Random

Attempts: TypeAlias = Iterator[list[float]]
"""Four uniform numbers of [0, 1) for each attempt to place a block: its area, aspect, row and column."""

_AT_A_TIME = 32
"""Attempts that are drawn together. Most masks need fewer; the values do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class BlockMasking:
    """Masks for some of the crops, from few to many patches. The defaults are those of iBOT and DINOv2."""

    probability: float = 0.5
    """Share of the crops that are masked: exactly so many of the global batch, rounded down. The others are not."""
    ratio: tuple[float, float] = (0.1, 0.5)
    """Smallest and largest share of a masked crop's patches. The range is cut into as many equal strata as crops are
    masked, and each crop draws its share within one of them."""
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Smallest and largest ratio of a block's height to its width; uniform in the logarithm."""
    smallest_block: int = 4
    """Patches that a block is meant to have at least, where so many are still to be hidden."""
    attempts: int = 10
    """After so many blocks in a row that do not fit, a mask stays smaller than it was meant to be."""

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability is {self.probability}; it must be above 0 and at most 1")
        if not 0 < self.ratio[0] <= self.ratio[1] <= 1:
            raise ValueError(f"ratio is {self.ratio}; it must be two shares above 0 and at most 1, the smaller first")
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise ValueError(f"aspect is {self.aspect}; it must be two positive ratios, the smaller first")
        for name in ("smallest_block", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def __call__(self, random: Random, crops: int, batch_size: int, grid: tuple[int, int]) -> Tensor:
        """Masks for this worker's crops, on the CPU.

        Which crops are masked, and in which stratum, is a permutation of the global batch that all workers share; the
        share within the stratum and the blocks come from each row's own draws.

        Args:
            random: draws for this worker's rows of the global batch.
            crops: crops of each image.
            batch_size: rows of the global batch.
            grid: patches (down, across) of a crop.

        Returns:
            (crops * rows, down * across) bool, true where a patch is hidden; ordered by crop, then by row.

        Raises:
            ValueError: the batch is so small that no crop would be masked.
        """
        masked = int(crops * batch_size * self.probability)
        if masked == 0:
            raise ValueError(
                f"of {crops * batch_size} crops in a batch a share of {self.probability} would be masked, which is "
                "none; raise the batch size or the probability"
            )
        draws = Random(random.seed, random.step, random.rows, "cpu", random.scope)
        strata = draws.shared().permutation("strata", crops * batch_size).view(crops, batch_size)
        masks = np.zeros((crops, len(draws.rows), *grid), dtype=np.bool_)
        for crop in range(crops):
            own = draws.within(f"crop{crop}")
            places = own.uniform("ratio").tolist()
            for row, stratum in enumerate(strata[crop, own.rows.start : own.rows.stop].tolist()):
                if stratum < masked:
                    low, high = self.ratio
                    share = low + (high - low) * (stratum + places[row]) / masked
                    masks[crop, row] = self.mask(int(math.prod(grid) * share), grid, _attempts(own, row))
        return torch.from_numpy(masks).flatten(0, 1).flatten(1)

    def mask(self, patches: int, grid: tuple[int, int], attempts: Attempts) -> NDArray[np.bool_]:
        """One mask (down, across) of at most ``patches`` patches: blocks are placed one by one, also over one another,
        and each may hide no more new patches than are left. As in the official code, no block is as high or as wide as
        the grid."""
        down, across = grid
        mask = np.zeros(grid, dtype=np.bool_)
        hidden = failures = 0
        while hidden < patches and failures < self.attempts:
            left = patches - hidden
            of_area, of_aspect, of_row, of_column = next(attempts)
            area = self.smallest_block + of_area * (left - self.smallest_block)
            aspect = self.aspect[0] * (self.aspect[1] / self.aspect[0]) ** of_aspect
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            new = 0
            if height < down and width < across:
                top, start = int(of_row * (down - height + 1)), int(of_column * (across - width + 1))
                block = mask[top : top + height, start : start + width]
                new = height * width - int(np.count_nonzero(block))
            if 0 < new <= left:
                block[:] = True
                hidden += new
                failures = 0
            else:
                failures += 1
        return mask


def _attempts(random: Random, row: int) -> Attempts:
    """The draws of one of these rows, without end."""
    own = Random(random.seed, random.step, random.rows[row : row + 1], "cpu", random.scope)
    for number in itertools.count():
        yield from own.uniform(f"blocks{number}", _AT_A_TIME, 4)[0].tolist()
