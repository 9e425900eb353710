"""Environments of the gymnasium interface (Towers et al. 2024), and all that are registered there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from heliostat.errors import InputError, nearest
from heliostat.reinforcement.environments.config import Environment, check_lanes
from heliostat.reinforcement.environments.lanes import Lanes, Outcome
from heliostat.reinforcement.environments.spec import EnvironmentSpec, FrameType
from heliostat.reinforcement.environments.vector import VectorEnvironment

if TYPE_CHECKING:
    import gymnasium

_STORED: dict[str, FrameType] = {
    "uint8": np.dtype(np.uint8),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float32),
}
"""What frames of the spaces' types are kept as."""


class GymnasiumEnvironment(Environment):
    """Any environment that gymnasium knows by an id, with a finite set of actions and numbers to see."""

    type: Literal["gymnasium"]
    id: str = Field(min_length=1)
    """Such as ``CartPole-v1``; ``package.module:Name-v0`` imports a module first, which registers it."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of ``gymnasium.make``; ``max_episode_steps`` is the time limit."""
    stack: int = Field(default=1, ge=1)
    """The newest frames that the network sees together."""

    def make(
        self, count: int, seeds: Sequence[int], threads: int = 1, evaluation: bool = False, render: bool = False
    ) -> VectorEnvironment:
        check_lanes(count, seeds)
        if render:  # classic environments draw with pygame, which otherwise looks for a sound card
            os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
        # Its own checker looks at the first steps alone; what lanes look at lasts.
        arguments = {"disable_env_checker": True} | ({"render_mode": "rgb_array"} if render else {}) | self.arguments
        make_lane = partial(GymnasiumLane, self.id, partial(_registered, self.id, arguments), self.stack)
        return Lanes(self.id, make_lane, seeds, self.timeout_s)


def _registered(name: str, arguments: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    import gymnasium

    try:
        gymnasium.spec(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{name}: {error}; install what registers this environment") from error
    except gymnasium.error.Error as error:
        raise InputError(f"gymnasium knows no environment '{name}'.{nearest(name, gymnasium.registry)}") from error
    return gymnasium.make(name, **arguments)


class GymnasiumLane:
    """One environment of gymnasium's interface as a lane.

    Args:
        name: what errors call it.
        make: makes it.
        stack: the newest frames that the network sees together.

    Raises:
        InputError: its actions or observations are not of the kind that can be learned here.
    """

    def __init__(self, name: str, make: Callable[[], gymnasium.Env[Any, Any]], stack: int) -> None:
        from gymnasium.spaces import Box, Discrete

        self._environment = make()
        actions, seen = self._environment.action_space, self._environment.observation_space
        problems = []
        if not isinstance(actions, Discrete):
            continuous = "continuous, or several at once" if isinstance(actions, Box) else "not a plain choice"
            problems.append(f"its actions are {actions}: {continuous}; they must be one of a finite set (Discrete)")
        if not isinstance(seen, Box) or str(seen.dtype) not in _STORED or not 1 <= len(seen.shape) <= 3:
            problems.append(
                f"its observations are {seen}; they must be a Box of float32, float64 or uint8 with 1 to 3 axes (a "
                "vector, a grey or a colour image). A wrapper of gymnasium.wrappers, such as FlattenObservation, may "
                "make them so"
            )
        if problems:
            self.close()
            raise InputError("\n".join(f"{name}: {problem}" for problem in problems))
        assert isinstance(actions, Discrete)
        assert isinstance(seen, Box)
        self._first_action = int(actions.start)
        self._shape, self._dtype = seen.shape, seen.dtype
        # Images have their colours last in gymnasium, but stacked ones often first: the shorter axis is the colours'.
        self._colours_last = len(seen.shape) == 3 and seen.shape[2] <= seen.shape[0]
        count = int(actions.n)
        self.spec = EnvironmentSpec(
            name=name,
            frame_shape=(seen.shape[2], *seen.shape[:2]) if self._colours_last else seen.shape,
            frame_dtype=_STORED[str(seen.dtype)],
            stack=stack,
            actions=count,
            action_names=tuple(str(self._first_action + action) for action in range(count)),
        )

    def reset(self, seed: int) -> npt.NDArray[Any]:
        observation, _ = self._environment.reset(seed=seed)
        return self._frame(observation)

    def step(self, action: int) -> Outcome:
        observation, reward, terminated, truncated, _ = self._environment.step(self._first_action + action)
        return Outcome(self._frame(observation), float(reward), bool(terminated), bool(truncated))

    def _frame(self, observation: Any) -> npt.NDArray[Any]:
        frame = np.asarray(observation)
        if frame.shape != self._shape or frame.dtype != self._dtype:
            raise ValueError(
                f"the observation is {frame.dtype} of shape {frame.shape}, but the environment declares {self._dtype} "
                f"of shape {self._shape}"
            )
        return frame.transpose(2, 0, 1) if self._colours_last else frame

    def render(self) -> npt.NDArray[np.uint8]:
        picture = np.asarray(self._environment.render())
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(f"it draws no picture (H, W, 3) of uint8 in the mode {self._environment.render_mode!r}")
        return picture

    def close(self) -> None:
        self._environment.close()  # type: ignore[no-untyped-call]
