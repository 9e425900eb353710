"""The order of events in a lane: what a slot says of its step, as bits of one byte, and which slot may follow which."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from heliostat_algorithms.reinforcement.replay.steps import Steps

START, ACTED, TERMINATED, TRUNCATED, LIFE_LOST = 1, 2, 4, 8, 16
"""Bits of a slot, named as in ``Steps``."""

FINAL = TERMINATED | LIFE_LOST
"""Nothing is bootstrapped across such a step."""

_ENDED = TERMINATED | TRUNCATED


def flags(steps: Steps) -> NDArray[np.uint8]:
    """(T, E) uint8: the bits of each slot."""
    bits: NDArray[np.uint8] = np.zeros(steps.action.shape, dtype=np.uint8)
    for mask, bit in (
        (steps.start, START),
        (steps.acted, ACTED),
        (steps.terminated, TERMINATED),
        (steps.truncated, TRUNCATED),
        (steps.life_lost, LIFE_LOST),
    ):
        bits |= mask * np.uint8(bit)
    return bits


def check(bits: NDArray[np.uint8], last: NDArray[np.uint8], known: NDArray[np.bool_], lanes: range) -> None:
    """Whether slots may follow one another as they do; a stream may begin anywhere, and break with a start.

    Args:
        bits: (T, E) of the new slots.
        last: (E,) of the slot before them in each lane.
        known: (E,): whether there is one.
        lanes: the E lanes' numbers, for errors.

    Raises:
        ValueError: they may not; names call and lane.
    """
    before = np.concatenate([last[None], bits[:-1]])
    follows = np.ones(bits.shape, dtype=np.bool_)
    follows[:1] = known
    acted, start = bits & ACTED > 0, bits & START > 0
    ended, over = before & _ENDED > 0, before & ACTED == 0
    for wrong, message in (
        (~acted & (bits > 0), "no action was taken, so it can neither start nor end an episode, nor lose a life"),
        (~acted & follows & ~ended, "no action was taken, although the call before did not end the episode"),
        (
            acted & ~start & follows & (ended | over),
            "the episode was over, but this is not marked as the start of another",
        ),
    ):
        found = np.argwhere(wrong)
        if len(found):
            call, column = (int(i) for i in found[0])
            raise ValueError(f"call {call}, lane {lanes[column]}: {message}")
