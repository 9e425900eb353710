"""A video of an agent at play: what it sees, and at the side what it expects of each action.

Pictures are drawn by Pillow one after the other while the agent plays, and written as they come.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from heliostat.errors import InputError, RunError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

GIF_FRAMES = 1000
"""A gif is put together in memory; longer ones than this are cut off, and said to be."""
GIF_RATE = 50
"""Frames per second at most: faster gifs are slowed down by browsers."""

_PICTURE = (480, 640)
"""Height and width, in pixels, that a picture is enlarged to at most; larger ones are left as they are."""
_PANEL_HEIGHT = 360
_MARGIN = 16
_HEADER = 104
"""Height of what stands above the bars."""
_BAR = 140
"""Width of the longest bar."""
_ROW = (16, 30)
"""Height of an action's row, at least and at most."""

_BACKGROUND = (22, 24, 29)
_TRACK = (38, 42, 50)
_TEXT = (235, 235, 235)
_MUTED = (150, 156, 166)
_OTHER = (86, 180, 233)
TAKEN = (230, 159, 0)
"""Colour of what marks the taken action. People with any kind of colour vision tell it from the other bars' blue (Okabe
and Ito)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Moment:
    """One step of play."""

    frame: npt.NDArray[np.uint8]
    """(H, W, 3): the picture in which the action was chosen, of one size in a video."""
    q_values: npt.NDArray[np.floating]
    """(A,)."""
    action: int
    """The one that was taken."""
    reward: float
    """What it brought."""
    episode_return: float
    """Sum of the episode's rewards so far, this one included."""


@dataclass(frozen=True)
class Recording:
    """A video that was written."""

    path: Path
    frames: int
    seconds: float
    cut: bool
    """Whether play went on after the last frame that a gif may have."""


class Board:
    """Draws moments: the picture at the left, return and bars of the Q-values at the right.

    The bars' axis spans all values seen so far, so that bars move with the value of the state, and never jump back.
    They start at 0 where the axis holds it, and at its left end otherwise.

    Args:
        frame_shape: (H, W, 3) of the pictures.
        action_names: (A,), from the top down.
        title: such as the game's name.
    """

    def __init__(self, frame_shape: tuple[int, ...], action_names: Sequence[str], title: str = "") -> None:
        from PIL import ImageFont

        self.frame_shape, self.action_names, self.title = tuple(frame_shape), tuple(action_names), title
        if len(self.frame_shape) != 3 or self.frame_shape[2] != 3 or not self.action_names:
            raise ValueError(f"pictures are (H, W, 3) and actions have names, not {frame_shape} and {action_names}")
        height, width, _ = self.frame_shape
        self.scale = max(1, min(_PICTURE[0] // height, _PICTURE[1] // width))
        """Pixels on a side that a pixel of the picture becomes."""
        count = len(self.action_names)
        tall = max(height * self.scale, _PANEL_HEIGHT, _HEADER + count * _ROW[0] + _MARGIN)
        self._row = min(_ROW[1], (tall - _HEADER - _MARGIN) // count)
        self._fonts: dict[str, FreeTypeFont] = {}
        for use, size in {"title": 18, "text": 15, "row": min(15, self._row - 2), "axis": 11}.items():
            font = ImageFont.load_default(size)
            if isinstance(font, ImageFont.ImageFont):
                raise RunError("this build of Pillow lacks FreeType, so that no text can be drawn")
            self._fonts[use] = font
        names = max(self._fonts["row"].getlength(name) for name in self.action_names)
        values = self._fonts["row"].getlength("-00000.00")
        self._left = width * self.scale + _MARGIN
        self._bars = math.ceil(self._left + 14 + names + 10)
        head = self._left + self._fonts["title"].getlength(title)
        total = math.ceil(max(self._bars + _BAR + values, head) + _MARGIN)
        self.size = (total + total % 2, tall + tall % 2)
        """Width and height of what is drawn, both even, as video formats want them."""
        self._low, self._high = math.inf, -math.inf

    def bar_box(self, action: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom (exclusive) of the place where an action's bar is drawn."""
        top = _HEADER + action * self._row
        return self._bars, top + 2, self._bars + _BAR, top + self._row - 2

    def draw(self, moment: Moment, step: int) -> Image:
        """The annotated picture.

        Raises:
            ValueError: the moment's picture, Q-values or action do not fit this board.
        """
        from PIL import Image, ImageDraw

        self._check(moment)
        height, width, _ = self.frame_shape
        image = Image.new("RGB", self.size, _BACKGROUND)
        picture = Image.fromarray(np.ascontiguousarray(moment.frame))
        enlarged = picture.resize((width * self.scale, height * self.scale), Image.Resampling.NEAREST)
        image.paste(enlarged, (0, (self.size[1] - enlarged.height) // 2))
        draw = ImageDraw.Draw(image)
        self._draw_header(draw, moment, step)
        self._draw_bars(draw, moment)
        return image

    def _check(self, moment: Moment) -> None:
        frame, count = moment.frame, len(self.action_names)
        if frame.shape != self.frame_shape or frame.dtype != np.uint8:
            raise ValueError(f"pictures must be uint8 {self.frame_shape}, not {frame.dtype} {frame.shape}")
        if moment.q_values.shape != (count,) or not 0 <= moment.action < count:
            raise ValueError(
                f"there are {count} actions, but {list(moment.q_values.shape)} Q-values and action {moment.action}"
            )

    def _draw_header(self, draw: ImageDraw, moment: Moment, step: int) -> None:
        left, right, text = self._left, self.size[0] - _MARGIN, self._fonts["text"]
        draw.text((left, 12), self.title, _TEXT, self._fonts["title"])
        draw.text((left, 40), f"return {moment.episode_return:g}", _TEXT, text)
        draw.text((left, 60), f"step {step}", _MUTED, text)
        if moment.reward:
            draw.text((right, 40), f"reward {moment.reward:+g}", _TEXT, text, anchor="ra")

    def _draw_bars(self, draw: ImageDraw, moment: Moment) -> None:
        finite = moment.q_values[np.isfinite(moment.q_values)].tolist()
        self._low, self._high = min([self._low, *finite]), max([self._high, *finite])
        if self._low > self._high:
            low, high = 0.0, 1.0  # no finite value yet
        else:
            room = 0.05 * (self._high - self._low) or 0.05 * abs(self._high) or 1.0
            low, high = self._low - room, self._high + room
        above = _HEADER - 18
        draw.text((self._left, above), "Q", _MUTED, self._fonts["axis"])
        draw.text((self._bars, above), f"{low:.3g}", _MUTED, self._fonts["axis"])
        draw.text((self._bars + _BAR, above), f"{high:.3g}", _MUTED, self._fonts["axis"], anchor="ra")
        origin = 0.0 if low <= 0 <= high else low
        for action, (name, value) in enumerate(zip(self.action_names, moment.q_values.tolist(), strict=True)):
            taken = action == moment.action
            left, top, right, bottom = self.bar_box(action)
            middle = (top + bottom) / 2
            draw.rectangle((left, top, right - 1, bottom - 1), _TRACK)
            if math.isfinite(value):
                ends = sorted(left + (x - low) / (high - low) * (_BAR - 1) for x in (origin, value))
                draw.rectangle((round(ends[0]), top, round(ends[1]), bottom - 1), TAKEN if taken else _OTHER)
            if taken:
                x = self._left
                draw.polygon([(x, middle - 4), (x + 7, middle), (x, middle + 4)], TAKEN)
            ink, font = _TEXT if taken else _MUTED, self._fonts["row"]
            draw.text((self._left + 14, middle), name, ink, font, anchor="lm")
            draw.text((self.size[0] - _MARGIN, middle), _number(value), ink, font, anchor="rm")
        if low < 0 < high:
            zero = self._bars + round((0 - low) / (high - low) * (_BAR - 1))
            end = _HEADER + len(self.action_names) * self._row
            draw.line((zero, _HEADER, zero, end - 1), _MUTED)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e5 else f"{value:.2e}"


def check_video(path: Path, frames_per_second: float) -> None:
    """Whether a video of this name can be written here; asked before the agent plays.

    Raises:
        InputError: it is no ``.gif`` or ``.mp4``, its folder does not exist, the speed is out of range, or the encoder
            of mp4 is not installed; says how to install it.
    """
    if path.suffix not in (".gif", ".mp4"):
        raise InputError(f"a video is written as .gif or .mp4, not as '{path.name}'")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}")
    most = GIF_RATE if path.suffix == ".gif" else 1000
    if not 1 <= frames_per_second <= most:
        raise InputError(f"a {path.suffix[1:]} has 1 to {most} frames per second, not {frames_per_second:g}")
    if path.suffix == ".mp4" and find_spec("av") is None:
        raise InputError(
            "mp4 is written by PyAV, which is not installed: pip install 'heliostat[video]', or write a .gif"
        )


def record(
    moments: Iterable[Moment],
    path: Path,
    action_names: Sequence[str],
    frames_per_second: float,
    title: str = "",
    gif_frames: int = GIF_FRAMES,
) -> Recording:
    """Write a video of some moments of play, one frame each.

    The file is there once it is whole. An mp4 may be of any length: one frame is in memory at a time.

    Args:
        moments: asked for one by one; steps are counted from 0.
        path: ends in ``.gif`` or ``.mp4``; a file that is there is replaced.
        action_names: (A,).
        frames_per_second: of the video.
        title: stands above the bars.
        gif_frames: a gif ends after so many, with a warning.

    Raises:
        InputError: as :func:`check_video`.
        RunError: there was no moment, or the file cannot be written.
        ValueError: a moment does not fit the one before or the actions.
    """
    check_video(path, frames_per_second)
    iterator = iter(moments)
    try:
        first = next(iterator)
    except StopIteration:
        raise RunError("nothing was played, so there is no video") from None
    board = Board(first.frame.shape, action_names, title)
    images = (board.draw(moment, step) for step, moment in enumerate(itertools.chain([first], iterator)))
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".gif":
            frames = _write_gif(itertools.islice(images, gif_frames), partial, frames_per_second)
        else:
            frames = _write_mp4(images, partial, frames_per_second)
        partial.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    cut = next(iterator, None) is not None
    seconds = frames / frames_per_second
    if cut:
        logger.warning(
            "%s ends after %d frames (%.0f s), the most that a gif is given; an .mp4 shows all", path, frames, seconds
        )
    return Recording(path, frames, seconds, cut)


def _write_gif(images: Iterator[Image], path: Path, frames_per_second: float) -> int:
    """Returns the number of frames."""
    from PIL import Image

    # A palette for each frame, without dithering: games have few colours, and flat areas compress.
    frames = [image.quantize(dither=Image.Dither.NONE) for image in images]
    # Gifs count hundredths of a second: rounded ends, not rounded lengths, keep the whole at its speed.
    ends = [round(100 * frame / frames_per_second) for frame in range(len(frames) + 1)]
    durations = [10 * (end - start) for start, end in itertools.pairwise(ends)]
    with path.open("wb") as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)
    return len(frames)


def _write_mp4(images: Iterator[Image], path: Path, frames_per_second: float) -> int:
    """Returns the number of frames."""
    import av

    frames = 0
    try:
        with closing(av.open(str(path), "w", format="mp4")) as container:
            stream = container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1001))
            stream.pix_fmt = "yuv420p"  # what every player shows
            stream.options = {"crf": "18", "preset": "veryfast"}
            for image in images:
                if frames == 0:
                    stream.width, stream.height = image.size
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")))
                frames += 1
            container.mux(stream.encode(None))
    except av.error.FFmpegError as error:
        raise OSError(error.strerror or str(error)) from error
    return frames
