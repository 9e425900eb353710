"""River Raid, flown by a pilot that keeps to the water: videos labelled by how fast the river passes.

The console's memory holds the speed. The same stretch of river is passed at all three speeds, and the plane looks alike
at each: a single picture does not tell the speed, the way that everything moves down the screen does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heliostat.data.atari import Dice, Emulator, Screens, Shape, record_motions
from heliostat.data.samples import Progress

SPEEDS = {"slow": (-1, 64), "cruise": (0, 128), "fast": (1, 254)}
"""The classes: how the throttle is held (back, let go, pushed), and the speed in rows of the screen per 128 frames."""
SPEED = 53
"""Where the memory holds the speed."""
PLANE_X = 51
"""Where it holds the plane's place, in columns from the screen's left edge; the nose is four further."""

_ACTIONS = {
    (1, 0): 10, (0, 0): 1, (-1, 0): 13,
    (1, 1): 14, (0, 1): 11, (-1, 1): 16,
    (1, -1): 15, (0, -1): 12, (-1, -1): 17,
}  # fmt: skip
"""Buttons by throttle and stick (1 is right), the gun always firing: what is in the way is shot."""
_WATER = 64
"""Its grey on the screen."""
_AHEAD, _NOSE = 40, 138
"""Rows of the screen that the pilot looks at; its plane is right below."""
_WING = 5
"""Columns on each side of the nose that have to be free."""
_DETOUR = 0.6
"""Rows of free water ahead that a column further to the side has to have more."""
_TOLERANCE = 4
"""By how much the speed in a video may differ from that of its class."""
_PATIENCE = 300
"""Frames within which the plane has to take up a speed."""
_APPROACH = 200
"""Frames after the loss of a plane, or the beginning of a match, in which the river may still move by itself."""
_GAP = (0, 60)
"""Frames of play left out between two videos, at any speed."""


class Pilot:
    """Steers for the column with the most free water ahead, but not far to the side."""

    def __init__(self) -> None:
        self.throttle = 0

    def action(self, emulator: Emulator) -> int:
        water = emulator.screen()[_AHEAD:_NOSE][::-1] == _WATER
        depth = np.where(water.all(axis=0), len(water), water.argmin(axis=0))
        wide = np.pad(depth, _WING, constant_values=0)
        free = np.lib.stride_tricks.sliding_window_view(wide, 2 * _WING + 1).min(axis=1)
        nose = int(emulator.memory[PLANE_X]) + 4
        aim = int(np.argmax(free - _DETOUR * np.abs(np.arange(len(free)) - nose)))
        stick = 0 if abs(aim - nose) < 2 else 1 if aim > nose else -1
        return _ACTIONS[self.throttle, stick]


def record_speeds(
    split: str, videos: int, shape: Shape, progress: Progress | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Videos (videos, frames, C, H, W) in which the plane is not lost, and (videos,) its speed, all three equally
    often."""
    key = f"heliostat:atari:riverraid-speeds:{split}"
    flight = _Flight(key, shape)
    return record_motions(
        "riverraid", key, videos, shape, tuple(SPEEDS.values()), lambda speed: flight.stretch(*speed), progress
    )


class _Flight:
    """A match that goes on from video to video; a new one begins when it is over."""

    def __init__(self, key: str, shape: Shape) -> None:
        # In grey for the pilot's eyes; a second emulator shows the same match in colours where they are wanted.
        self._emulator, self._shape = Emulator("riverraid", 1), shape
        self._coloured = Emulator("riverraid", shape.channels) if shape.channels == 3 else None
        self._dice, self._pilot = Dice(key), Pilot()
        self._begin()

    def stretch(self, throttle: int, speed: int) -> Screens | None:
        """Fly at a speed and watch; None where the plane does not keep it, or is lost."""
        self._pilot.throttle = self._dice.integer(-1, 1)
        for _ in range(self._dice.integer(*_GAP)):
            self._fly()
        self._pilot.throttle = throttle
        for _ in range(_PATIENCE):
            if self._at(speed):
                break
            self._fly()
        screens = []
        for frame in range(self._shape.span):
            self._fly()
            if not self._at(speed):
                return None
            if frame % self._shape.frame_skip == 0:
                screens.append((self._coloured or self._emulator).screen())
        return screens

    def _at(self, speed: int) -> bool:
        """Whether a plane flies at this speed, and not the river moves by itself after one was lost."""
        return self._flown >= _APPROACH and abs(int(self._emulator.memory[SPEED]) - speed) <= _TOLERANCE

    def _begin(self) -> None:
        for emulator in (self._emulator, self._coloured):
            if emulator is not None:
                emulator.restart()
        self._planes, self._flown = self._emulator.lives, 0

    def _fly(self) -> None:
        """One frame. Counts those since the last plane was lost; a new match begins when none is left."""
        action = self._pilot.action(self._emulator)
        going = self._emulator.press(action)
        if self._coloured is not None:
            self._coloured.press(action)
        lost = self._emulator.lives < self._planes
        self._planes, self._flown = self._emulator.lives, 0 if lost else self._flown + 1
        if not going:
            self._begin()
