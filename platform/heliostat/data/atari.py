"""Pictures and videos of Atari 2600 games, recorded from the emulator of the Arcade Learning Environment (Bellemare et
al. 2013), whose Python package ships the games.

A recording is a function of the game, the split and the settings: the emulator is deterministic, and whoever plays
draws from streams named after game and split. So ``train`` and ``test`` are other matches without a picture in common,
and everybody who records has the same pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from heliostat.data.samples import Progress
from heliostat.data.videos import span
from heliostat.errors import InputError, nearest

SPEED = 60
"""Frames of the emulator in a second of play."""

_BLOCK = 4096
"""Draws made at a time."""
_LONGEST_WAIT = 180
"""Frames of play, at most, before a match is first looked at."""
_GAP = 60
"""Frames of play left out between two videos, on average."""
_PER_MATCH = 50
"""Videos after which a new match begins, for games that random play never ends."""
_FRUITLESS_MATCHES = 50
"""Matches in a row without a video after which a game is taken for one that cannot be recorded."""
_REPEATS = 200
"""Videos of the other split in a row after which a game is taken for one that shows little."""

Motion = TypeVar("Motion")

Screens = list[npt.NDArray[np.uint8]]
"""Pictures as the emulator gives them: (210, 160, 3), or (210, 160) in grey."""


class Dice:
    """Random numbers one after the other that are the same everywhere, now and later."""

    def __init__(self, key: str) -> None:
        self._key, self._step = key, 0
        self._block: Iterator[float] = iter(())

    def uniform(self) -> float:
        """From 0 to 1."""
        for value in self._block:
            return value
        from heliostat_algorithms.randomness import Random

        self._block = iter(Random(0, self._step, range(_BLOCK), scope=self._key).uniform("dice").tolist())
        self._step += 1
        return next(self._block)

    def integer(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        return low + int(self.uniform() * (high - low + 1))


class Player(Protocol):
    """Whoever presses the buttons."""

    def action(self, emulator: Emulator) -> int:
        """What to do in the coming frame."""


class RandomPlayer:
    """Holds each action for up to half a second: random play that gets somewhere."""

    def __init__(self, dice: Dice) -> None:
        self._dice, self._left, self._action = dice, 0, 0

    def action(self, emulator: Emulator) -> int:
        if self._left == 0:
            self._left = self._dice.integer(1, SPEED // 2)
            self._action = emulator.actions[self._dice.integer(0, len(emulator.actions) - 1)]
        self._left -= 1
        return self._action


class Emulator:
    """One game, frame by frame.

    Raises:
        InputError: there is no such game.
    """

    def __init__(self, game: str, channels: int) -> None:
        import ale_py
        from ale_py import roms

        check_games([game])
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setInt("random_seed", 0)
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.loadROM(str(roms.get_rom_path(game)))
        self._grey = channels == 1
        self.memory: npt.NDArray[np.uint8] = np.zeros(128, np.uint8)
        """(128,): the console's memory after the last frame."""
        self.actions: list[int] = [action.value for action in self._ale.getMinimalActionSet()]
        """The buttons that do something in this game."""

    def restart(self) -> None:
        """Begin a match."""
        self._ale.reset_game()
        self._ale.getRAM(self.memory)

    def play(self, player: Player) -> bool:
        """One frame of 1/60 s; false where the match is over."""
        return self.press(player.action(self))

    def press(self, action: int) -> bool:
        """As :meth:`play`, with given buttons."""
        self._ale.act(action)
        self._ale.getRAM(self.memory)
        return not self._ale.game_over()

    @property
    def lives(self) -> int:
        """How many are left, in games that count them."""
        return int(self._ale.lives())

    def write(self, values: Mapping[int, int]) -> None:
        """Change the console's memory: signed or unsigned bytes by their places."""
        for place, value in values.items():
            self._ale.setRAM(place, value % 256)

    def screen(self) -> npt.NDArray[np.uint8]:
        """(210, 160, 3), or (210, 160) in grey: what is seen after the last frame."""
        pixels: npt.NDArray[np.uint8] = self._ale.getScreenGrayscale() if self._grey else self._ale.getScreenRGB()
        return pixels


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is recorded of a game."""

    frames: int
    """Of each video."""
    frame_skip: int
    """Frames of the emulator from one frame of a video to the next."""
    image_size: int
    channels: int

    @property
    def span(self) -> int:
        """Frames of the emulator from the first to the last frame of a video, both counted."""
        return span(self.frames, self.frame_skip)

    def empty(self, videos: int) -> npt.NDArray[np.uint8]:
        """(videos, frames, C, H, W), not filled."""
        return np.empty((videos, self.frames, self.channels, self.image_size, self.image_size), np.uint8)

    def resized(self, screens: Screens) -> npt.NDArray[np.uint8]:
        """(frames, C, H, W): the means of the areas that become a pixel; a screen becomes a square."""
        from PIL import Image

        size = (self.image_size, self.image_size)
        pixels = [np.asarray(Image.fromarray(screen).resize(size, Image.Resampling.BOX)) for screen in screens]
        return np.stack([frame[None] if self.channels == 1 else frame.transpose(2, 0, 1) for frame in pixels])


def check_games(games: Sequence[str]) -> None:
    """Whether the emulator has these games.

    Raises:
        InputError: it lacks one; names the nearest.
    """
    from ale_py import roms

    known = roms.get_all_rom_ids()
    for game in games:
        if game not in known:
            raise InputError(f"there is no Atari game '{game}'.{nearest(game, known)}")


def record_games(
    games: Sequence[str], split: str, videos: int, shape: Shape, progress: Progress | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Videos (videos, frames, C, H, W) of games in turn, and their games' numbers (videos,).

    What games show again and again, such as the picture after a lost life, is in one split alone.
    """
    recorders = [record_game(game, split, shape) for game in games]
    frames, labels = shape.empty(videos), np.arange(videos) % len(games)
    for video, game in enumerate(labels.tolist()):
        for _ in range(_REPEATS):
            frames[video] = shape.resized(next(recorders[game]))
            if _split_of(frames[video]) == split:
                break
        else:
            raise InputError(f"{games[game]} cannot be recorded: it shows the same again and again")
        if progress is not None:
            progress(f"recording {', '.join(games)}", video + 1, videos)
    return frames, labels


def _split_of(pixels: npt.NDArray[np.uint8]) -> str:
    """Where this video, if it is recorded, belongs: half of all go to each split."""
    return ("train", "test")[hashlib.blake2b(pixels.tobytes(), digest_size=1).digest()[0] % 2]


def record_game(game: str, split: str, shape: Shape) -> Iterator[Screens]:
    """Videos of one game without end, about a second of play apart."""
    from heliostat.data.pong import PongPlayer

    emulator = Emulator(game, shape.channels)
    dice = Dice(f"heliostat:atari:{game}:{split}")
    fruitless = 0
    while fruitless < _FRUITLESS_MATCHES:
        emulator.restart()
        player = PongPlayer(dice) if game == "pong" else RandomPlayer(dice)
        fruitless += 1
        gap = dice.integer(0, _LONGEST_WAIT)
        for _ in range(_PER_MATCH):
            screens = _watch(emulator, player, gap, shape)
            if screens is None:
                break
            yield screens
            fruitless, gap = 0, dice.integer(0, 2 * _GAP)
    raise InputError(
        f"{game} cannot be recorded: {_FRUITLESS_MATCHES} matches in a row ended before {shape.span} frames of random "
        "play; take shorter videos"
    )


def record_motions(
    game: str,
    key: str,
    videos: int,
    shape: Shape,
    motions: Sequence[Motion],
    watch: Callable[[Motion], Screens | None],
    progress: Progress | None = None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Videos (videos, frames, C, H, W) in which something moves in one of several ways, and which one (videos,), all
    equally often.

    Args:
        key: of the draws that decide the order.
        motions: what ``watch`` is given.
        watch: makes a video; None where that failed, and it is asked again.
    """
    from heliostat_algorithms.randomness import permutation

    # Not one after the other in turn: what is seen beside the motion depends on the video before.
    frames, labels = shape.empty(videos), permutation(f"{key}:order", videos).numpy() % len(motions)
    for video, motion in enumerate(labels.tolist()):
        screens = None
        while screens is None:
            screens = watch(motions[motion])
        frames[video] = shape.resized(screens)
        if progress is not None:
            progress(f"recording {game}", video + 1, videos)
    return frames, labels


def _watch(emulator: Emulator, player: Player, gap: int, shape: Shape) -> Screens | None:
    """A video after some frames; None if the match ends before."""
    screens = []
    for frame in range(gap + shape.span):
        if not emulator.play(player):
            return None
        if frame >= gap and (frame - gap) % shape.frame_skip == 0:
            screens.append(emulator.screen())
    return screens
