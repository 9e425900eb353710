"""Lanes of ``ale_py``'s vector environment, which runs them in threads of its own, without what is wrong with it.

- It looks at its time limit before it takes the frame that is seen then, so that the frame at a truncation is mixed
  from older ones, whatever the limit (ale-py 0.12.1). So it has none here: steps are counted, and lanes that are cut
  off are reset by themselves.
- An action that it does not have makes it wait forever: actions are checked before it sees them.
- It can clip rewards and end episodes at a lost life: neither is used. A lost life shows in ``lives``.
- Of a step in which the game ends it gives frames from before the end: what is seen last in a *terminated* episode is
  up to a step old. No value is ever carried over from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from heliostat.reinforcement.environments.atari_scores import ATARI_SCORES
from heliostat.reinforcement.environments.failure import EnvironmentFailure
from heliostat.reinforcement.environments.seeding import episode_seed
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.environments.supervised import Supervised
from heliostat.reinforcement.environments.vector import Flags, Frames, Played

if TYPE_CHECKING:
    from ale_py.vector_env import AtariVectorEnv

    from heliostat.reinforcement.environments.atari import AtariEnvironment

_SIZE = 84
_SCREEN = (210, 160)
_NO_LIMIT = 2**30
"""Frames of an episode, more than any has; the emulator adds to it in 32 bits."""
_NO_OP = 0
"""First in the action set of every game."""


class AtariLanes(Supervised):
    """A game in several lanes. A lane's episodes follow from its seed, in the order they are played.

    Args:
        config: the game and its conventions.
        seeds: one per lane.
        threads: in which the emulator runs.
        max_steps: actions after which an episode is truncated.
        render: whether a second emulator, in colour, follows the first.
    """

    def __init__(
        self, config: AtariEnvironment, seeds: Sequence[int], threads: int, max_steps: int, render: bool
    ) -> None:
        self._config, self._threads, self._max_steps, self._draws = config, threads, max_steps, render
        super().__init__(f"atari/{config.game}", seeds, config.timeout_s)

    def _open(self) -> EnvironmentSpec:
        # Only the newest frame is asked for: stacks are made where they are needed; copying them took 3 % of a step.
        self._emulator: AtariVectorEnv | None = self._emulate(grayscale=True, height=_SIZE, width=_SIZE)
        self._screen: AtariVectorEnv | None = None
        if self._draws:
            self._screen = self._emulate(grayscale=False, height=_SCREEN[0], width=_SCREEN[1])
        actions = self._emulator.ale.get_action_set()
        return EnvironmentSpec(
            name=self.name,
            frame_shape=(_SIZE, _SIZE),
            frame_dtype=np.dtype(np.uint8),
            stack=self._config.stack,
            actions=len(actions),
            action_names=tuple(action.name for action in actions),
            reference=ATARI_SCORES.get(self._config.game),
            frames_per_step=self._config.frame_skip,
        )

    def _emulate(self, *, grayscale: bool, height: int, width: int) -> AtariVectorEnv:
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode

        return AtariVectorEnv(
            self._config.game,
            self.count,
            num_threads=self._threads,
            max_num_frames_per_episode=_NO_LIMIT,
            repeat_action_probability=self._config.sticky_actions,
            full_action_space=self._config.full_action_set,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            img_height=height,
            img_width=width,
            grayscale=grayscale,
            stack_num=1,
            frameskip=self._config.frame_skip,
            maxpool=self._config.max_pool,
            noop_max=self._config.no_ops,
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
            use_fire_reset=self._config.fire_on_reset,
        )

    def _reset(self, seeds: Sequence[int] | None) -> Frames:
        chosen = None if seeds is None else np.array([episode_seed(seed, 0) for seed in seeds], np.int64)
        frames, lives = self._restart(chosen, None)
        self._lives = lives
        self._steps = np.zeros(self.count, np.int64)
        self._over = np.zeros(self.count, np.bool_)
        self._cut = np.zeros(self.count, np.bool_)
        return frames

    def _step(self, actions: npt.NDArray[np.int64]) -> Played:
        acted = ~self._over
        cut = self._cut.any()
        # The emulator does not know that these are over. It plays on with them, and then they are reset.
        asked = np.where(self._cut, _NO_OP, actions) if cut else actions
        frames, rewards, terminated, info = self._emulated(asked)
        lives = info["lives"]
        if cut:
            frames, lives = self._restart(None, self._cut)
            rewards[self._cut], terminated[self._cut] = 0, False
        self._steps = np.where(acted, self._steps + 1, 0)
        truncated = acted & ~terminated & (self._steps >= self._max_steps)
        life_lost = acted & ~terminated & (lives < self._lives)
        if not self._config.life_loss:
            life_lost[:] = False
        self._lives, self._cut, self._over = lives, truncated, terminated | truncated
        return Played(frames, rewards.astype(np.float64), terminated, truncated, life_lost, acted)

    def _emulated(self, actions: npt.NDArray[np.int64]) -> tuple[Frames, npt.NDArray[Any], Flags, dict[str, Any]]:
        """The emulator's answer to a step but for its truncations, with (E, 84, 84) frames."""
        assert self._emulator is not None
        if self._screen is not None:
            self._picture = self._screen.step(actions)[0][:, 0]
        frames, rewards, terminated, _, info = self._emulator.step(actions)
        return frames[:, 0], rewards, terminated, info

    def _restart(self, seeds: npt.NDArray[np.int64] | None, lanes: Flags | None) -> tuple[Frames, npt.NDArray[Any]]:
        """Begin an episode in some lanes, or in all: the frames (E, 84, 84) and lives (E,) of all lanes then."""
        assert self._emulator is not None
        options = None if lanes is None else {"reset_mask": lanes}
        if self._screen is not None:
            self._picture = self._screen.reset(seed=seeds, options=options)[0][:, 0]
        frames: Frames
        frames, info = self._emulator.reset(seed=seeds, options=options)
        return frames[:, 0], info["lives"]

    def _render(self, lane: int) -> npt.NDArray[np.uint8]:
        if self._screen is None:
            raise EnvironmentFailure(self.name, "it was made without render, so there are no pictures", lane)
        picture: npt.NDArray[np.uint8] = self._picture[lane]
        return picture

    def _close(self) -> None:
        self._emulator = self._screen = None  # their threads end with them
