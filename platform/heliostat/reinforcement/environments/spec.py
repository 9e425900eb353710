"""What one may know of an environment before playing in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

FrameType: TypeAlias = np.dtype[np.uint8] | np.dtype[np.float32]
"""Bytes for shades or numbers."""


@dataclass(frozen=True)
class ReferenceScores:
    """What others scored in a game, to measure a score by."""

    random: float
    """Mean return of uniformly random actions."""
    human: float
    """Mean return of a professional tester."""

    def normalized(self, score: float) -> float:
        """0 for a random player, 1 for the human."""
        return (score - self.random) / (self.human - self.random)


@dataclass(frozen=True)
class EnvironmentSpec:
    """Shapes and names."""

    name: str
    frame_shape: tuple[int, ...]
    """Of one frame: (D,), (H, W) or (C, H, W)."""
    frame_dtype: FrameType
    stack: int
    """The newest frames that make an observation, zeros before an episode's first."""
    actions: int
    """How many; they are numbered from 0."""
    action_names: tuple[str, ...]
    reference: ReferenceScores | None = None
    frames_per_step: int = 1
    """Frames of the game that an action lasts: the frame skip."""

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Of what the network sees, oldest frame first: (k, H, W) for frames (H, W), else the first axis k times as
        long."""
        if len(self.frame_shape) == 2:
            return (self.stack, *self.frame_shape)
        return (self.stack * self.frame_shape[0], *self.frame_shape[1:])
