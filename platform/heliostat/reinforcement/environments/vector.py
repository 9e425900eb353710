"""Several copies of an environment, its lanes, that are stepped together.

An ended episode is left as it is for one call, so that its last frame is seen: the call after a step that terminated or
truncated ignores that lane's action and begins the next episode (gymnasium's ``AutoresetMode.NEXT_STEP``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from heliostat.reinforcement.environments.spec import EnvironmentSpec

Frames = npt.NDArray[Any]
"""(E, *frame_shape): the newest frame of each lane."""
Flags = npt.NDArray[np.bool_]
"""(E,)."""


@dataclass(frozen=True)
class Played:
    """What one call of ``step`` did. The arrays are the caller's: nobody writes into them later."""

    frame: Frames
    """What is seen after the action. Of an episode that ended in this call: its last frame. Of a lane that did not act:
    the first frame of the new episode."""
    reward: npt.NDArray[np.float64]
    """(E,): as the game gave it, never clipped; 0 where the lane did not act."""
    terminated: Flags
    """The action ended the episode."""
    truncated: Flags
    """The episode was cut off after the action, by a time limit for instance; never together with ``terminated``."""
    life_lost: Flags
    """The action cost a life, and the episode goes on."""
    acted: Flags
    """False where the action was ignored because the episode had ended in the call before."""


class VectorEnvironment(Protocol):
    """``count`` lanes. Errors of the environment are raised as ``EnvironmentFailure``; then it is of no more use."""

    spec: EnvironmentSpec
    count: int
    """E, the lanes."""

    def reset(self, seeds: Sequence[int] | None = None) -> Frames:
        """Begin an episode in every lane; the frames that are seen first.

        Args:
            seeds: one per lane, from which all its episodes follow from now on. None: those that it was made with the
                first time; later, every lane goes on to its next episode.
        """

    def step(self, actions: npt.NDArray[np.int64]) -> Played:
        """Act in all lanes, (E,).

        Raises:
            ValueError: an action is out of range; nothing was played.
            EnvironmentFailure: the environment raised, hung, or gave what it did not declare.
        """

    def render(self, lane: int) -> npt.NDArray[np.uint8]:
        """(H, W, 3): a picture for people, of an environment that was made with ``render``."""

    def close(self) -> None:
        """Give everything back. Also after a failure; a second time does nothing."""
