"""Handwritten digits that move over a black canvas, after Moving MNIST (Srivastava, Mansimov and Salakhutdinov 2015),
from scikit-learn's digits: nothing to download.

Every video is a function of (split, its number): more videos leave the first ones as they are. Where the class is the
digit, digits bounce off the edges. Where it is the direction, they leave at one edge and come back at the opposite
one: then the direction lasts, and in each frame alone the digit is anywhere, whichever way it moves.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from heliostat.data.digits import enlarged, load_digits

DIRECTIONS = ("right", "right-up", "up", "left-up", "left", "left-down", "down", "right-down")
"""45 degrees from one to the next."""

_SLOWEST, _FASTEST = 0.025, 0.075
"""Of the canvas's side per frame."""
_CHUNK = 256
"""Videos drawn at a time, so that indices stay small."""

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]


def moving_digits(
    split: Literal["train", "test"],
    *,
    videos: int,
    frames: int,
    digits: int,
    image_size: int,
    label: Literal["digit", "direction"],
) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Videos (videos, frames, 1, S, S) of one or two digits, and (videos,) the class of the first digit or its
    direction. A second digit is half as bright; where digits meet, the brighter pixel is seen.

    Args:
        image_size: S; digits are half as wide.
    """
    from heliostat_algorithms.randomness import Random

    source = load_digits(split)
    if source.labels is None:
        raise ValueError("the digits have labels")
    shapes = enlarged(source.images[:, 0], image_size // 2)
    out = np.zeros((videos, frames, 1, image_size, image_size), np.uint8)
    labels = np.empty(videos, np.int64)
    wraps = label == "direction"
    for first in range(0, videos, _CHUNK):
        rows = range(first, min(first + _CHUNK, videos))
        canvas = out[first : rows.stop, :, 0]
        random = Random(0, 0, rows, scope=f"heliostat:moving-digits:{split}")
        for digit in reversed(range(digits)):  # the first one last: the labels are its
            own = random.within(f"digit {digit}")
            which = own.integers("sample", len(shapes)).numpy()
            directions = own.integers("direction", len(DIRECTIONS)).numpy()
            angles = directions * (math.pi / 4) if wraps else own.uniform("angle").numpy() * (2 * math.pi)
            speeds = image_size * own.uniform("speed", low=_SLOWEST, high=_FASTEST).numpy().astype(np.float64)
            room = image_size if wraps else image_size - shapes.shape[-1]
            places = own.uniform("place", 2).numpy().astype(np.float64) * room
            x = _path(places[:, 0], speeds * np.cos(angles), frames, room, wraps)
            y = _path(places[:, 1], -speeds * np.sin(angles), frames, room, wraps)  # rows are counted from above
            _draw(canvas, shapes[which] // (digit + 1), x, y)
        labels[first : rows.stop] = directions if wraps else source.labels[which]
    return out, labels


def _path(start: Numbers, step: Numbers, frames: int, room: int, wraps: bool) -> npt.NDArray[np.int64]:
    """(B, frames): whole pixels from 0 to ``room``, on a ring or to and fro between both ends."""
    way = start[:, None] + step[:, None] * np.arange(frames)
    whole = np.floor(way) % room if wraps else np.rint(room - np.abs(way % (2 * room) - room))
    return whole.astype(np.int64)


def _draw(canvas: Pixels, shapes: Pixels, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> None:
    """Draw shapes (B, h, h) with their corner at (x, y), each (B, T), into (B, T, S, S), where they are brighter than
    what is there; beyond an edge they go on at the opposite one."""
    size, inner = canvas.shape[-1], np.arange(shapes.shape[-1])
    rows = (y[:, :, None, None] + inner[:, None]) % size
    columns = (x[:, :, None, None] + inner) % size
    video = np.arange(len(canvas))[:, None, None, None]
    frame = np.arange(canvas.shape[1])[:, None, None]
    canvas[video, frame, rows, columns] = np.maximum(canvas[video, frame, rows, columns], shapes[:, None])
