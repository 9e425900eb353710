"""What the replay hands to a learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ReplayBatch:
    """B sampled items: n-step transitions whose stacks of frames are rebuilt."""

    observation: NDArray[Any]
    """(B, *stacked shape): the stack before the action, oldest frame first."""
    action: NDArray[np.int64]
    """(B,)."""
    reward: NDArray[np.float32]
    """(B,): the n-step return: discounted rewards, clipped where the buffer clips, of k <= n steps."""
    bootstrap: NDArray[np.float32]
    """(B,): the factor on the value of the next observation: discount^k, or 0 where the episode terminated or a life
    was lost."""
    next_observation: NDArray[Any]
    """(B, *stacked shape): the stack k steps later; zeros where the episode terminated or a life was lost."""
    priority_mass: NDArray[np.float64]
    """(B,): priority^exponent; 1 where sampling is uniform. Over the total mass it is the item's probability."""
    slot: NDArray[np.int64]
    """(B,): where the item lies in its buffer."""
    generation: NDArray[np.int64]
    """(B,): which of the items that lay in that slot one after the other it is."""
    age: NDArray[np.int64]
    """(B,): actions that the buffer took in after this one."""

    def __len__(self) -> int:
        return len(self.action)

    def rows(self, rows: range) -> ReplayBatch:
        """Some neighbouring rows, without a copy: what one of several learners takes."""
        if len(rows) == len(self):
            return self
        return ReplayBatch(*[getattr(self, name)[rows.start : rows.stop] for name in _NAMES])

    @staticmethod
    def concatenated(batches: Sequence[ReplayBatch]) -> ReplayBatch:
        """One batch of the rows of several, in their order.

        Raises:
            ValueError: no batches, or batches of different observations.
        """
        if len(batches) == 1:
            return batches[0]
        return ReplayBatch(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in _NAMES))


_NAMES = tuple(field.name for field in fields(ReplayBatch))
