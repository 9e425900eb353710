"""Which items can be sampled: what newly written slots complete, and what they put an end to.

All functions look at E neighbouring lanes and at the slots around what was just written, never at the whole buffer.
They rely on it that no more than length - n - stack + 1 slots of a lane were written at once, so that all items that
wait for their outcome are still there, with their frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliostat_algorithms.reinforcement.replay.lookahead import spans
from heliostat_algorithms.reinforcement.replay.rings import Rings
from heliostat_algorithms.reinforcement.replay.stream import ACTED, START


def histories(flags: NDArray[np.uint8], last: NDArray[Any], known: NDArray[np.bool_], stack: int) -> NDArray[np.int64]:
    """(T, E): how many frames of the same episode come before each slot's, up to stack - 1.

    Args:
        flags: (T, E) of the slots.
        last: (E,): the same number for the slot before them in each lane.
        known: (E,): whether there is one. A stream that begins without a start is in the middle of an episode.
        stack: frames in a stack.
    """
    rows = np.arange(len(flags))[:, None]
    before = -1 - np.where(known, last, stack - 1).astype(np.int64)  # the row of the oldest frame that still counts
    starts = np.where(flags & START > 0, rows, before)
    return np.minimum(rows - np.maximum.accumulate(starts), stack - 1)


def cut_off(rings: Rings, lanes: range, history: NDArray[Any], stack: int) -> NDArray[np.int64]:
    """Slots that are still there, but not all frames of the stacks that end in them: of the first stack - 1 of each
    ring."""
    some = slice(lanes.start, lanes.stop)
    oldest = rings.written[some] - rings.lengths[some]
    numbers = oldest + np.arange(stack - 1)[:, None]
    slots = rings.numbered(lanes, numbers).slots()
    found: NDArray[np.int64] = slots[(oldest > 0) & (numbers - history[slots] < oldest)]
    return found


def settled(
    rings: Rings, lanes: range, calls: int, flags: NDArray[np.uint8], history: NDArray[Any], n_step: int
) -> tuple[NDArray[np.int64], int]:
    """What the last ``calls`` slots of each lane decided: the slots whose items became complete, and how many items it
    is certain of since then that they never will."""
    after = rings.written[lanes.start : lanes.stop]
    before = after - calls
    numbers = before + np.arange(-n_step, calls)[:, None]
    items = rings.numbered(lanes, numbers)
    slots = items.slots()
    # Before a lane's first slot nothing is available.
    found = spans(flags, items, np.where(numbers >= 0, after - numbers, 0), n_step)
    now = numbers + found.decided >= before
    # The stack shows frames from before the lane's first slot.
    headless = numbers < history[slots]
    acted = flags[slots] & ACTED > 0
    lost = np.where(headless, acted & (numbers >= before), found.broken & now)
    return slots[found.complete & now & ~headless], int(np.count_nonzero(lost))
