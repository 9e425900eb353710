"""What a rollout hands to the replay: the calls of a vector environment, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES: dict[str, np.dtype[Any]] = {
    "action": np.dtype(np.int64),
    "reward": np.dtype(np.float32),
    "terminated": np.dtype(np.bool_),
    "truncated": np.dtype(np.bool_),
    "life_lost": np.dtype(np.bool_),
    "acted": np.dtype(np.bool_),
    "start": np.dtype(np.bool_),
    "priority": np.dtype(np.float32),
}


@dataclass(frozen=True)
class Steps:
    """T calls of a vector environment with E lanes, time-major; each call fills one slot of every lane.

    A lane is the stream of one environment, which is reset in the call after the one that ended the episode. So an
    episode of N actions fills N + 1 slots: the last one holds the true last observation, and no action.

    Raises:
        ValueError: a shape or a dtype is not as below.
    """

    frame: NDArray[Any]
    """(T, E, *frame_shape): what was seen before the action; the newest frame only, not a stack."""
    action: NDArray[np.int64]
    """(T, E)."""
    reward: NDArray[np.float32]
    """(T, E): as the environment gave it, never clipped."""
    terminated: NDArray[np.bool_]
    """(T, E): the action ended the episode."""
    truncated: NDArray[np.bool_]
    """(T, E): the episode was cut off after the action, by a time limit; its value goes on."""
    life_lost: NDArray[np.bool_]
    """(T, E): nothing is bootstrapped across this action, but the episode and its stack of frames go on."""
    acted: NDArray[np.bool_]
    """(T, E): False where no action was taken, in the slot after an episode's end."""
    start: NDArray[np.bool_]
    """(T, E): the frame is the first of an episode, or of a stream whose rollout was replaced."""
    priority: NDArray[np.float32] | None = None
    """(T, E): |TD error| of the item that begins here, NaN where it is not known; None where none is. Unknown ones
    count as the largest that the replay has seen so far. Uniform replay does not use it."""

    def __post_init__(self) -> None:
        shape = self.action.shape
        if len(shape) != 2:
            raise ValueError(f"action has the shape {shape}; it must be (T, E): calls, lanes")
        if self.frame.shape[:2] != shape:
            raise ValueError(f"frame has the shape {self.frame.shape}; it must begin with {shape}, the shape of action")
        for name, dtype in _DTYPES.items():
            array = getattr(self, name)
            if name == "priority" and array is None:
                continue
            if array.shape != shape:
                raise ValueError(f"{name} has the shape {array.shape}; it must be {shape}, the shape of action")
            if array.dtype != dtype:
                raise ValueError(f"{name} is {array.dtype}; it must be {dtype}")
