"""A tree of sums over any number of leaves, for sampling in proportion to them (Schaul et al. 2015, arXiv 1511.05952,
appendix B.2.1), with all rows of a batch walking down together.

Each node has 16 children rather than two: numpy pays for every level, and hardly for its width. Inner nodes are always
computed from their children again, never corrected by differences. So no rounding errors pile up, and the tree is a
function of its leaves: one that is rebuilt from a snapshot samples exactly what the old one would have.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_WIDTH = 16


class SumTree:
    """Sums of ``size`` leaves, all 0 at first. Looking up B positions and setting B leaves both take time
    O(B log size)."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a sum tree needs at least 1 leaf, not {size}")
        # From the leaves up: children in rows of 16, the last row filled up with zeros.
        self._levels: list[NDArray[np.float64]] = []
        nodes = size
        while not self._levels or nodes > 1:
            nodes = -(-nodes // _WIDTH)
            self._levels.append(np.zeros((nodes, _WIDTH)))
        self.total = 0.0
        """Sum of all leaves."""
        self.leaves: NDArray[np.float64] = self._levels[0].reshape(-1)[:size]
        """(size,): a live view; to be changed with ``update``, or before a ``rebuild``."""

    @property
    def nbytes(self) -> int:
        """Bytes of all nodes."""
        return sum(level.nbytes for level in self._levels)

    def update(self, indices: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Set the leaves at ``indices`` (B,) to ``values`` (B,), finite and not negative; of repeated indices the last
        counts."""
        self.leaves[indices] = values
        for below, above in pairwise(self._levels):
            indices = np.unique(indices // _WIDTH)
            above.reshape(-1)[indices] = _sums(below[indices])
        self.total = float(_sums(self._levels[-1])[0])

    def rebuild(self) -> None:
        """Compute all inner nodes from the leaves."""
        for below, above in pairwise(self._levels):
            above.reshape(-1)[: len(below)] = _sums(below)
        self.total = float(_sums(self._levels[-1])[0])

    def find(self, positions: NDArray[np.float64]) -> NDArray[np.int64]:
        """The leaf (B,) in which each position (B,) in [0, total) falls when the leaves lie end to end. It is never an
        empty one.

        Raises:
            ValueError: all leaves are 0, so that there is nothing to fall into.
        """
        if not self.total > 0:
            raise ValueError("all leaves of the sum tree are 0; there is none to find")
        rest = np.minimum(positions, np.nextafter(self.total, 0.0))
        node = np.zeros(len(rest), dtype=np.int64)
        rows = np.arange(len(rest))
        for level in reversed(self._levels):
            children = level[node]
            edges = np.zeros((len(rest), _WIDTH + 1))
            np.cumsum(children, axis=1, out=edges[:, 1:])
            # The node's sum is the last edge, added up in the same order, and rest is below it: there always is a child
            # whose upper edge is above rest, and the first such child is not empty.
            child = np.count_nonzero(edges[:, 1:] <= rest[:, None], axis=1)
            # Rounding may push what is left to the child's sum itself, but not beyond.
            rest = np.minimum(rest - edges[rows, child], np.nextafter(children[rows, child], 0.0))
            node = node * _WIDTH + child
        return node


def _sums(children: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 16) -> (N,), added from left to right as ``find`` does; numpy's own sum adds in another order."""
    sums: NDArray[np.float64] = np.cumsum(children, axis=1)[:, -1]
    return sums
