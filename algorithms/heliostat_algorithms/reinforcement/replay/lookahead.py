"""n-step returns (Sutton and Barto 2018, section 7.1), from the slots that follow an item's first.

An item sums the rewards of n steps, or of fewer where the episode ends or a life is lost before, and is bootstrapped
from the observation after the last of them. Whether it can be used depends on what has been written so far.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliostat_algorithms.reinforcement.replay.rings import Places
from heliostat_algorithms.reinforcement.replay.stream import ACTED, FINAL, START, TRUNCATED


class Spans(NamedTuple):
    """How far items reach; arrays of the items' shape."""

    steps: NDArray[np.int64]
    """k: steps whose rewards are summed, so far where it is not decided."""
    final: NDArray[np.bool_]
    """The last step terminated the episode or lost a life: nothing is bootstrapped, no next observation is needed."""
    complete: NDArray[np.bool_]
    """All that the item needs has been written."""
    broken: NDArray[np.bool_]
    """The stream broke before that: it never will be."""
    decided: NDArray[np.int64]
    """Steps from the item to the slot that made it complete or broken; -1 where it is neither."""


def spans(
    flags: NDArray[np.uint8],
    items: Places,
    available: NDArray[np.int64] | int,
    n_step: int,
) -> Spans:
    """Look ahead from each item's slot.

    Args:
        flags: (capacity,) of all slots.
        items: where items begin; nothing begins in slots without an action.
        available: slots written from each item's own on, itself included; at most 0 where even that one is missing.
        n_step: n.
    """
    here = flags[items.slots()]
    shape = here.shape
    steps, decided = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    final, complete, broken = (np.zeros(shape, dtype=np.bool_) for _ in range(3))
    # Each item is summing: it wants the step of slot i; or waiting: it wants the frame of slot i; or done.
    summing, waiting = here & ACTED > 0, np.zeros(shape, dtype=np.bool_)
    for i in range(n_step + 1):
        if i:
            here = flags[items.slots(i)]
        exists = np.asarray(available > i)
        if i:
            cut = (summing | waiting) & exists & (here & START > 0)
            arrived = waiting & exists & ~cut
            summing = summing & ~cut
            broken |= cut
            complete |= arrived
            decided[cut | arrived] = i
        summing = summing & exists
        steps[summing] = i + 1
        last = summing & (here & FINAL > 0)
        final |= last
        complete |= last
        decided[last] = i
        summing = summing & ~last
        waiting = summing & (here & TRUNCATED > 0) if i + 1 < n_step else summing
        summing = summing & ~waiting
    return Spans(steps, final, complete, broken, decided)


def returns(
    rewards: NDArray[Any], items: Places, steps: NDArray[np.int64], discount: float, clip: float | None
) -> NDArray[np.float64]:
    """Sums of discount^i * reward over the first ``steps`` steps of each item, rewards clipped to [-clip, clip]."""
    total = np.zeros(steps.shape)
    for i in range(int(steps.max(initial=0))):
        reward = rewards[items.slots(i)].astype(np.float64)
        if clip is not None:
            reward = np.clip(reward, -clip, clip)
        total += np.where(steps > i, discount**i * reward, 0.0)
    return total
