"""Vector environments of single ones, stepped one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from heliostat.reinforcement.environments.seeding import episode_seed
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.environments.supervised import Supervised
from heliostat.reinforcement.environments.vector import Frames, Played


class Outcome(NamedTuple):
    """What one action did in one lane."""

    frame: npt.NDArray[Any]
    reward: float
    terminated: bool
    truncated: bool


class Lane(Protocol):
    """A single environment."""

    spec: EnvironmentSpec

    def reset(self, seed: int) -> npt.NDArray[Any]:
        """Begin the episode that follows from the seed alone; its first frame."""

    def step(self, action: int) -> Outcome:
        """Act; frames have the shape and type of ``spec``, or a ValueError says what they have."""

    def render(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3): a picture for people."""

    def close(self) -> None:
        """Give everything back."""


class Lanes(Supervised):
    """A loop over lanes. Each episode is a function of its lane's seed and its number there, so that any can be played
    again without those before it."""

    def __init__(self, name: str, make_lane: Callable[[], Lane], seeds: Sequence[int], timeout_s: float) -> None:
        self._make_lane = make_lane
        super().__init__(name, seeds, timeout_s)

    def _open(self) -> EnvironmentSpec:
        self._lanes = [self._make_lane() for _ in range(self.count)]
        self._seeds: Sequence[int] = ()
        self._episodes = [0] * self.count
        self._over = [False] * self.count
        return self._lanes[0].spec

    def _reset(self, seeds: Sequence[int] | None) -> Frames:
        if seeds is not None:
            self._seeds, self._episodes = seeds, [0] * self.count
        frames = self._empty()
        for lane in range(self.count):
            frames[lane] = self._begin(lane)
        self._check_numbers(frames)
        return frames

    def _begin(self, lane: int) -> npt.NDArray[Any]:
        self._doing = (lane, None)
        frame = self._lanes[lane].reset(episode_seed(self._seeds[lane], self._episodes[lane]))
        self._episodes[lane] += 1
        self._over[lane] = False
        return frame

    def _step(self, actions: npt.NDArray[np.int64]) -> Played:
        frames, rewards = self._empty(), np.zeros(self.count)
        terminated, truncated, acted = (np.zeros(self.count, np.bool_) for _ in range(3))
        for lane, action in enumerate(actions.tolist()):
            if self._over[lane]:
                frames[lane] = self._begin(lane)
                continue
            self._doing = (lane, action)
            outcome = self._lanes[lane].step(action)
            if not math.isfinite(outcome.reward):
                raise ValueError(f"the reward is {outcome.reward}")
            frames[lane], rewards[lane], acted[lane] = outcome.frame, outcome.reward, True
            terminated[lane] = outcome.terminated
            truncated[lane] = outcome.truncated and not outcome.terminated
            self._over[lane] = outcome.terminated or outcome.truncated
        self._check_numbers(frames)
        return Played(frames, rewards, terminated, truncated, np.zeros(self.count, np.bool_), acted)

    def _empty(self) -> Frames:
        spec = self._lanes[0].spec
        return np.empty((self.count, *spec.frame_shape), spec.frame_dtype)

    def _check_numbers(self, frames: Frames) -> None:
        """One look at all lanes costs less than one at each."""
        if frames.dtype.kind == "f" and not np.isfinite(frames).all():
            lane = int(np.flatnonzero(~np.isfinite(frames).reshape(self.count, -1).all(1))[0])
            self._doing = (lane, None)
            raise ValueError(f"the observation holds numbers that are not finite: {frames[lane].tolist()}")

    def _render(self, lane: int) -> npt.NDArray[np.uint8]:
        self._doing = (lane, None)
        return self._lanes[lane].render()

    def _close(self) -> None:
        for lane in self._lanes:
            lane.close()
