"""MinAtar (Young and Tian 2019, arXiv 1903.03176): five Atari games in miniature, 10 x 10 cells of 4 to 10 kinds."""

from __future__ import annotations

import colorsys
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from heliostat.errors import InputError
from heliostat.reinforcement.environments.config import Environment, check_lanes
from heliostat.reinforcement.environments.lanes import Lanes, Outcome
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.environments.vector import VectorEnvironment

_ACTIONS = ("no-op", "left", "up", "right", "down", "fire")
_CELL = 16
"""Pixels of a cell's side in pictures for people."""


class MinAtarEnvironment(Environment):
    """A game of MinAtar. Its defaults are those that were published."""

    type: Literal["minatar"]
    game: Literal["asterix", "breakout", "freeway", "seaquest", "space_invaders"]
    sticky_actions: float = Field(default=0.1, ge=0, lt=1)
    """Probability that the action before is taken in place of the chosen one; never at an episode's first step, so that
    episodes are independent."""
    difficulty_ramping: bool = True
    """Whether Asterix, Seaquest and Space Invaders become faster with time."""
    full_action_set: bool = True
    """Six actions, also where some do nothing; false leaves those out."""
    max_steps: int | None = Field(default=None, ge=1)
    """Steps after which an episode is cut off. Null: never, as published; who plays well can then play for long."""
    stack: int = Field(default=1, ge=1)
    """The newest frames that the network sees together; a frame shows which way things move."""

    def make(
        self, count: int, seeds: Sequence[int], threads: int = 1, evaluation: bool = False, render: bool = False
    ) -> VectorEnvironment:
        check_lanes(count, seeds)
        return Lanes(f"minatar/{self.game}", partial(_MinAtarLane, self), seeds, self.timeout_s)


def _games() -> Any:
    """The class ``minatar.Environment``. Its import warns through the root logger that it cannot draw without seaborn,
    and sets that logger up to do so; we draw ourselves."""
    root, level = logging.getLogger(), logging.root.manager.disable
    silent = logging.NullHandler()
    root.addHandler(silent)
    logging.disable(logging.WARNING)
    try:
        from minatar import Environment as Games
    except ModuleNotFoundError as error:
        if error.name != "minatar":
            raise
        raise InputError("environment minatar needs a package: pip install 'heliostat[minatar]'") from None
    finally:
        logging.disable(level)
        root.removeHandler(silent)
    return Games


class _MinAtarLane:
    def __init__(self, config: MinAtarEnvironment) -> None:
        self._game = _games()(config.game, config.sticky_actions, config.difficulty_ramping)
        self._max_steps, self._steps = config.max_steps, 0
        self._actions = list(range(len(_ACTIONS))) if config.full_action_set else self._game.minimal_action_set()
        height, width, kinds = self._game.state_shape()
        self.spec = EnvironmentSpec(
            name=f"minatar/{config.game}",
            frame_shape=(kinds, height, width),
            frame_dtype=np.dtype(np.uint8),
            stack=config.stack,
            actions=len(self._actions),
            action_names=tuple(_ACTIONS[action] for action in self._actions),
        )

    def reset(self, seed: int) -> npt.NDArray[Any]:
        self._game.seed(seed)
        self._game.last_action = 0
        self._game.reset()
        self._steps = 0
        return self._frame()

    def step(self, action: int) -> Outcome:
        reward, terminated = self._game.act(self._actions[action])
        self._steps += 1
        return Outcome(self._frame(), float(reward), bool(terminated), self._steps == self._max_steps)

    def _frame(self) -> npt.NDArray[np.uint8]:
        """(kinds, 10, 10): 255 where a thing of that kind is, which networks, that take bytes for shades, see as 1."""
        cells: npt.NDArray[np.uint8] = self._game.state().transpose(2, 0, 1) * np.uint8(255)
        return cells

    def render(self) -> npt.NDArray[np.uint8]:
        cells = self._frame()
        picture = np.zeros((*cells.shape[1:], 3), np.uint8)
        for kind, places in enumerate(cells):
            colour = colorsys.hsv_to_rgb(kind / len(cells), 0.6, 1.0)
            picture[places > 0] = np.multiply(colour, 255).astype(np.uint8)
        return picture.repeat(_CELL, axis=0).repeat(_CELL, axis=1)

    def close(self) -> None:
        """Nothing to give back."""
