"""Pong: who plays it, and videos labelled by the direction in which the ball flies.

The console's memory holds the ball's place and speed. In a match that takes its course, the place tells the direction:
serves and returns repeat a few paths, and a ball on the right mostly comes from the right paddle. So for each video the
ball is put somewhere by writing into the memory, and the emulator goes on from there: halfway through the video it is
anywhere, whichever way it flies; it does not bounce, and the paddles do not follow it. What tells the direction is the
motion alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heliostat.data.atari import Dice, Emulator, RandomPlayer, Screens, Shape, record_motions
from heliostat.data.samples import Progress
from heliostat.data.videos import span
from heliostat.errors import InputError

BALL_X, BALL_Y, PADDLE_Y, OPPONENT_Y = 49, 54, 51, 21
"""Where the memory holds the place of the ball, of the right paddle, which is the player's, and of the left one; the
ball's height is 0 while there is none."""
SPEED_X, SPEED_Y = 58, 56
"""Where it holds the ball's speed in pixels per frame, as signed bytes; the first one counts leftwards."""
OFFSET_X, OFFSET_Y = 49, 14
"""What is to be taken away to have the screen's column and row of the ball's first pixel."""
DIRECTIONS = {"left-up": (-1, -1), "left-down": (-1, 1), "right-up": (1, -1), "right-down": (1, 1)}
"""The classes, with the signs of their motion in x and y; rows are counted from above."""

_COLUMNS, _ROWS = (70, 186), (48, 203)
"""Between the paddles and between the walls, as the memory counts."""
_SPEEDS = (1, 2)
"""Rows per frame. Columns per frame are always 1, as in most of a match."""
_GAP = (10, 40)
"""Frames of play before a ball is placed: paddles and score change."""

_FIRE, _UP, _DOWN = 1, 3, 4
_LAPSE = 0.15
"""How often the player does something else for a quarter of a second."""


class PongPlayer:
    """Follows the ball, aims with all parts of the paddle and is distracted at times: matches in which the ball is in
    play and both sides score."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._left, self._aim = 0, 0
        self._lapse: int | None = None

    def action(self, emulator: Emulator) -> int:
        if self._left == 0:
            self._left = 15
            self._lapse = (0, _UP, _DOWN)[self._dice.integer(0, 2)] if self._dice.uniform() < _LAPSE else None
            self._aim = self._dice.integer(-8, 8)
        self._left -= 1
        if emulator.memory[BALL_Y] == 0:
            return _FIRE
        if self._lapse is not None:
            return self._lapse
        ahead = int(emulator.memory[BALL_Y]) + self._aim - int(emulator.memory[PADDLE_Y])
        return 0 if abs(ahead) < 4 else _DOWN if ahead > 0 else _UP


def check_flight(frames: int, frame_skip: int) -> None:
    """Whether the ball can fly as long as a video without a bounce.

    Raises:
        InputError: it cannot.
    """
    longest = min(_COLUMNS[1] - _COLUMNS[0], (_ROWS[1] - _ROWS[0]) // max(_SPEEDS))
    if span(frames, frame_skip) > longest:
        raise InputError(
            f"videos of {frames} frames at frame_skip {frame_skip} span {span(frames, frame_skip)} frames of play, and "
            f"no ball flies longer than {longest} without a bounce; take fewer frames or a smaller frame_skip"
        )


def record_directions(
    split: str, videos: int, shape: Shape, progress: Progress | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Videos (videos, frames, C, H, W) of a ball that does not bounce, and (videos,) its direction, all four equally
    often.

    Raises:
        InputError: no flight is as long as these videos.
    """
    check_flight(shape.frames, shape.frame_skip)
    key = f"heliostat:atari:pong-directions:{split}"
    match = _Match(key, shape)

    def watch(motion: tuple[int, int]) -> Screens | None:
        match.go_on()
        return match.flight(*motion)

    return record_motions("pong", key, videos, shape, tuple(DIRECTIONS.values()), watch, progress)


class _Match:
    """A match in which the ball can be put somewhere; a new one begins when it is over."""

    def __init__(self, key: str, shape: Shape) -> None:
        self._emulator, self._shape = Emulator("pong", shape.channels), shape
        self._dice = Dice(key)
        self._player = PongPlayer(self._dice)
        self._emulator.restart()

    def go_on(self) -> None:
        """Play for some time, until there is a ball."""
        left = self._dice.integer(*_GAP)
        while left > 0 or self._emulator.memory[BALL_Y] == 0:
            if not self._emulator.play(self._player):
                self._emulator.restart()
            left -= 1

    def flight(self, right: int, down: int) -> Screens | None:
        """Place a ball that flies this way, and watch; None where it does not go straight on, as rarely happens."""
        speed = _SPEEDS[self._dice.integer(0, len(_SPEEDS) - 1)]
        x, y = self._start(_COLUMNS, right), self._start(_ROWS, down * speed)
        self._emulator.write({BALL_X: x, BALL_Y: y, SPEED_X: -right, SPEED_Y: down * speed})
        screens = []
        # A paddle that follows the ball tells where it came from: one is moved at random, the other one held.
        bystander, held = RandomPlayer(self._dice), int(self._emulator.memory[OPPONENT_Y])
        for frame in range(self._shape.span):
            self._emulator.write({OPPONENT_Y: held})
            if not self._emulator.play(bystander):
                self._emulator.restart()
                return None
            x, y = x + right, y + down * speed
            if (self._emulator.memory[BALL_X], self._emulator.memory[BALL_Y]) != (x, y):
                return None
            if frame % self._shape.frame_skip == 0:
                screens.append(self._emulator.screen())
        return screens

    def _start(self, court: tuple[int, int], step: int) -> int:
        """Where to put the ball so that what is recorded, from one step later on, lies anywhere within the court."""
        way = abs(step) * (self._shape.span - 1)
        nearest = self._dice.integer(court[0], court[1] - way)
        return (nearest if step > 0 else nearest + way) - step
