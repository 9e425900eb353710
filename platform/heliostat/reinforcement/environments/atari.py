"""Games of the Arcade Learning Environment (Bellemare et al. 2013) under the conventions of the DQN papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from heliostat.errors import InputError
from heliostat.reinforcement.environments.config import Environment, check_lanes
from heliostat.reinforcement.environments.vector import VectorEnvironment

_MACHADO: dict[str, Any] = {"no_ops": 0, "life_loss": False, "sticky_actions": 0.25, "full_action_set": True}


class AtariEnvironment(Environment):
    """An Atari 2600 game: grey frames of 84 x 84, raw rewards. Fields that are not given follow ``protocol``; the
    defaults shown are those of ``nature``."""

    type: Literal["atari"]
    game: str = Field(min_length=1)
    """The emulator's name of it, such as pong, breakout, ms_pacman."""
    protocol: Literal["nature", "machado"] = "nature"
    """``nature``: Mnih et al. 2015. ``machado``: Machado et al. 2018 (arXiv 1709.06009), with sticky_actions 0.25,
    full_action_set true, life_loss false and no_ops 0."""
    frame_skip: int = Field(default=4, ge=1)
    """Frames of the emulator, which makes 60 a second, that an action lasts; the 2013 paper takes 3 in Space Invaders,
    whose shots blink."""
    max_pool: bool = True
    """Whether a frame is the brighter of the emulator's last two, pixel by pixel, since many games draw things in every
    other frame only; false in the 2013 paper."""
    stack: int = Field(default=4, ge=1)
    """The newest frames that the network sees together."""
    no_ops: int = Field(default=30, ge=0)
    """Episodes begin after 0 to ``no_ops`` - 1 of the emulator's frames without a button pressed, drawn uniformly; 0
    for none. (The paper draws 1 to 30.)"""
    fire_on_reset: bool = False
    """Whether FIRE is pressed for a frame at an episode's start, where the game has it; it counts as one of the no-ops.
    The papers leave it to the agent to begin the game."""
    life_loss: bool = True
    """Whether a lost life is told (``life_lost``), so that no value is carried over it. The game goes on."""
    sticky_actions: float = Field(default=0.0, ge=0, lt=1)
    """Probability, in each of the emulator's frames, that the action before goes on in place of the chosen one."""
    full_action_set: bool = False
    """All 18 actions in place of those that do something in this game."""
    max_frames: int = Field(default=108_000, ge=1)
    """Frames of the emulator, 60 a second, after which an episode is cut off: 30 minutes. A multiple of
    ``frame_skip``."""
    evaluation_max_frames: int = Field(default=18_000, ge=1)
    """The same where scores are measured: 5 minutes, as in both protocols. Later papers (Double DQN to Rainbow) and the
    human scores have 108,000."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_protocol_says(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("protocol") == "machado":
            return _MACHADO | given
        return given

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        for name, frames in (("max_frames", self.max_frames), ("evaluation_max_frames", self.evaluation_max_frames)):
            if frames % self.frame_skip:
                below = frames - frames % self.frame_skip
                right = " or ".join(str(value) for value in (below, below + self.frame_skip) if value > 0)
                raise ValueError(
                    f"{name}: an action lasts {self.frame_skip} frames, so that {frames} are no whole number of steps; "
                    f"{right} would be"
                )
        return self

    def check(self) -> list[str]:
        from heliostat.data.atari import check_games

        try:
            check_games([self.game])
        except InputError as error:
            return [str(problem) for problem in error.problems]
        return []

    def make(
        self, count: int, seeds: Sequence[int], threads: int = 1, evaluation: bool = False, render: bool = False
    ) -> VectorEnvironment:
        from heliostat.data.atari import check_games
        from heliostat.reinforcement.environments.atari_vector import AtariLanes

        check_lanes(count, seeds)
        if threads < 1:
            raise ValueError(f"the emulator has one thread at least, not {threads}")
        check_games([self.game])
        max_frames = self.evaluation_max_frames if evaluation else self.max_frames
        return AtariLanes(self, seeds, threads, max_frames // self.frame_skip, render)
