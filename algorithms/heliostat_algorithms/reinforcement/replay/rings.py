"""Where the slots of each lane lie: every lane is a ring of its own in one row of slots."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Places(NamedTuple):
    """Slots, with the rings that they belong to; all arrays of one shape, or shapes that broadcast."""

    offset: NDArray[np.int64]
    """First slot of the ring."""
    length: NDArray[np.int64]
    """Slots of the ring."""
    position: NDArray[np.int64]
    """Steps along the ring from its first slot; any whole number, because it goes round."""

    def slots(self, steps: int | NDArray[np.int64] = 0) -> NDArray[np.int64]:
        """The slots so many steps later in the same stream."""
        return self.offset + (self.position + steps) % self.length


class Rings:
    """``capacity`` slots shared out to ``lanes`` rings whose lengths differ by at most one.

    A lane's slots are numbered from 0 as they are written. Slot number i lies at position i mod length, and is there
    until number i + length is written.
    """

    def __init__(self, capacity: int, lanes: int) -> None:
        self.lengths = np.full(lanes, capacity // lanes, dtype=np.int64)
        self.lengths[: capacity % lanes] += 1
        self.offsets = np.cumsum(self.lengths) - self.lengths
        self.written = np.zeros(lanes, dtype=np.int64)
        """(lanes,): slots ever written."""

    @property
    def used(self) -> int:
        """Slots that hold something."""
        return int(np.minimum(self.written, self.lengths).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept for each lane."""
        return self.lengths.nbytes + self.offsets.nbytes + self.written.nbytes

    def numbered(self, lanes: range, numbers: NDArray[np.int64]) -> Places:
        """The places of slots by their numbers (rows, E) in these E neighbouring lanes."""
        some = slice(lanes.start, lanes.stop)
        return Places(self.offsets[some], self.lengths[some], numbers)

    def places(self, slots: NDArray[np.int64]) -> Places:
        """The places of any slots."""
        lane = np.searchsorted(self.offsets, slots, side="right") - 1
        return Places(self.offsets[lane], self.lengths[lane], slots - self.offsets[lane])
