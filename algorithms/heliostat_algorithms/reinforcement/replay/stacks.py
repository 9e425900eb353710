"""Stacks of frames, rebuilt from single ones: each frame is stored once (Mnih et al. 2013, arXiv 1312.5602, section 4.1
stacks the last 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliostat_algorithms.reinforcement.replay.rings import Places


def stacked_shape(frame_shape: tuple[int, ...], stack: int) -> tuple[int, ...]:
    """The shape of ``stack`` frames: (H, W) -> (stack, H, W); (C, H, W) -> (stack * C, H, W); (D,) -> (stack * D,).

    Raises:
        ValueError: frames of another kind.
    """
    if len(frame_shape) not in (1, 2, 3) or min(frame_shape) < 1:
        raise ValueError(f"frames have the shape {frame_shape}; they must be (D,), (H, W) or (C, H, W)")
    if len(frame_shape) == 2:
        return (stack, *frame_shape)
    return (stack * frame_shape[0], *frame_shape[1:])


def gather(
    frames: NDArray[Any], places: Places, history: NDArray[Any], stack: int, blank: NDArray[np.bool_] | None = None
) -> NDArray[Any]:
    """(B, *stacked shape): the stacks that end at places (B,), oldest frame first.

    Args:
        frames: (capacity, *frame_shape).
        places: newest frame of each stack.
        history: (B,): how many frames before the newest belong to its episode; zeros stand for the others.
        stack: frames in a stack.
        blank: (B,): stacks that are zeros altogether.
    """
    back = np.arange(stack - 1, -1, -1)
    ring = Places(*(part[:, None] for part in places))
    slots = ring.slots(-back)
    found = frames.take(slots, axis=0)  # (B, stack, *frame_shape)
    missing = back > history[:, None]
    if blank is not None:
        missing |= blank[:, None]
    found[missing] = 0
    return found.reshape(len(found), *stacked_shape(frames.shape[1:], stack))
