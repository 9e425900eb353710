"""Freeway, whose traffic is set before each video: videos labelled by how fast the cars drive.

The console's memory holds, for each of ten lanes, where its cars are, how many there are, and how fast they drive. For
each video cars are put anywhere and all lanes are given the same speed, and the emulator goes on from there. Cars look
alike at all speeds: what tells the speed is the motion alone. All of it goes on where it cannot be seen: what comes out
from behind something can be told by who knows the speed, and by nobody else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heliostat.data.atari import Dice, Emulator, RandomPlayer, Screens, Shape, record_motions
from heliostat.data.samples import Progress
from heliostat.errors import InputError

SPEEDS = {"slow": 2, "medium": 1, "fast": 0}
"""The classes, as the memory says them: 1/2, 1 and 2 columns of the screen per frame of the emulator."""
LANES = 10
CARS = 23
"""Where the memory holds the cars of the first lane, the lowest one; the others follow. Three bits say which cars,
three how fast they are, and the highest one is set by the console."""
PLACES = 108
"""Where it holds the column of the first lane's foremost car; the others follow."""
KINDS = (0, 1, 2, 3, 5, 6)
"""One car, two cars near each other or far apart, three near each other, a truck, three far apart."""
WIDTH = 160
"""Columns of the road; who leaves it on one side comes back on the other."""
_SETTLED = 4
"""Frames after which cars are drawn where they have been put."""
_GAP = (10, 60)
"""Frames of play between two videos: hens move, the score changes."""
_FRUITLESS = 10
"""Attempts in a row after which videos are taken for longer than a match."""


def record_traffic(
    split: str, videos: int, shape: Shape, progress: Progress | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Videos (videos, frames, C, H, W) and (videos,) the speed of the cars, all three equally often.

    Raises:
        InputError: no match is as long as these videos.
    """
    key = f"heliostat:atari:freeway-traffic:{split}"
    road = _Road(key, shape)
    return record_motions("freeway", key, videos, shape, tuple(SPEEDS.values()), road.watch, progress)


class _Road:
    """A match that goes on from video to video; a new one begins when its time is up."""

    def __init__(self, key: str, shape: Shape) -> None:
        self._emulator, self._shape = Emulator("freeway", shape.channels), shape
        self._dice = Dice(key)
        self._player = RandomPlayer(self._dice)
        self._failed = 0
        self._emulator.restart()

    def watch(self, speed: int) -> Screens | None:
        """Set the traffic and watch it; None where the match ends, or the console changes the traffic."""
        screens = self._watched(speed)
        self._failed = 0 if screens is not None else self._failed + 1
        if self._failed == _FRUITLESS:
            raise InputError(
                f"freeway cannot be recorded: {_FRUITLESS} times in a row the match ended, or its traffic changed, "
                f"within {self._shape.span} frames of play; take shorter videos"
            )
        return screens

    def _watched(self, speed: int) -> Screens | None:
        for _ in range(self._dice.integer(*_GAP)):
            self._play()
        cars = [(speed << 4) | KINDS[self._dice.integer(0, len(KINDS) - 1)] for _ in range(LANES)]
        self._emulator.write({CARS + lane: byte for lane, byte in enumerate(cars)})
        self._emulator.write({PLACES + lane: self._dice.integer(0, WIDTH - 1) for lane in range(LANES)})
        screens = []
        for frame in range(-_SETTLED, self._shape.span):
            if not self._play():
                return None
            if [int(byte) & 0x7F for byte in self._emulator.memory[CARS : CARS + LANES]] != cars:
                return None
            if frame >= 0 and frame % self._shape.frame_skip == 0:
                screens.append(self._emulator.screen())
        return screens

    def _play(self) -> bool:
        """One frame; false where the match ended with it."""
        going = self._emulator.play(self._player)
        if not going:
            self._emulator.restart()
        return going
