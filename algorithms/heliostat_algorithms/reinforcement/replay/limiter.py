"""How often experience is reused: a ratio of sampled to inserted items that is kept whatever the speed of either side
(the rate limiter of Reverb, Cassirer et al. 2021, arXiv 2102.04736)."""

from __future__ import annotations

import math
from collections.abc import Mapping


class SamplesPerInsert:
    """Counts items on both sides, and holds the side that is ahead.

    What is due is ratio * (inserted - minimum) items. Samplers may be ahead of that by ``ratio * tolerance`` items, so
    that they need not wait for each insert. Inserters are held where as much as that is due already, unless there is
    not enough yet for the batch that the sampler waits for: so one of both can always go on, whatever the sizes of
    batches and inserts.

    Args:
        ratio: items sampled for each one inserted: 8 in DQN 2015, with batches of 32 every 4 steps.
        minimum: items inserted before the first is sampled; those do not count for the ratio.
        tolerance: in inserted items. None: strict, samplers are never ahead, and inserters wait whenever a whole batch
            is due. That makes both take turns in one fixed order.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, ratio: float, minimum: int, tolerance: float | None = None) -> None:
        if not 0 < ratio < math.inf:
            raise ValueError(f"ratio is {ratio}; it must be finite and above 0")
        if minimum < 0:
            raise ValueError(f"minimum is {minimum}; it cannot be negative")
        if tolerance is not None and not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance is {tolerance}; it must be finite and at least 0, or None")
        self._ratio, self._minimum = ratio, minimum
        self._slack = ratio * (tolerance or 0.0)
        self._inserted = self._sampled = 0

    @property
    def due(self) -> float:
        """Items that the ratio asks to be sampled and that are not yet; negative where samplers are ahead."""
        return self._ratio * (self._inserted - self._minimum) - self._sampled

    def updates_due(self, batch_size: int) -> int:
        """How many updates with such batches the ratio asks for now."""
        return max(0, math.floor(self.due / batch_size))

    def may_sample(self, count: int) -> bool:
        """Whether so many items may be sampled now."""
        return self._inserted >= self._minimum and self._inserted > 0 and self.due + self._slack >= count

    def may_insert(self, count: int, batch_size: int, underway: int = 0) -> bool:
        """Whether so many items may be inserted now.

        Args:
            count: how many.
            batch_size: items of the batch that the sampler waits for, as it asks ``may_sample`` for.
            underway: items that others will insert, because they were allowed to.
        """
        if self.due + self._ratio * (underway + count) <= self._slack:
            return True
        return not underway and not self.may_sample(batch_size)

    def inserted(self, count: int) -> None:
        """So many items were inserted."""
        self._inserted += count

    def sampled(self, count: int) -> None:
        """So many items were sampled."""
        self._sampled += count

    def state(self) -> dict[str, int]:
        """The counts, as plain JSON data."""
        return {"inserted": self._inserted, "sampled": self._sampled}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on from counts."""
        self._inserted, self._sampled = state["inserted"], state["sampled"]
