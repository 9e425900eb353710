"""Shapes that fly at constant speed and bounce off the walls: videos whose statistics are known exactly.

Every video is a function of (split, its number): more videos leave the first ones as they are. Speeds are uniform
between two bounds, directions over the circle, places over all that keep the shape whole. Shapes are drawn at fractions
of pixels, with edges one pixel soft, so that the centre of brightness moves as evenly as the shape does.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

SHAPES = ("disc", "square", "cross")
SPEEDS = ("slow", "medium", "fast")
"""Thirds of the range of speeds."""

SLOWEST, FASTEST = 0.03, 0.12
"""Of the canvas's side per frame."""
_RADIUS = 0.16
"""Of the disc, in sides of the canvas; the other shapes are about as large."""
_MARGIN = 0.24
"""From a wall to the centre of a shape that touches it, in sides of the canvas: the same for all shapes, which have
room in it with their soft edges."""
_CHUNK = 512
"""Videos drawn at a time, so that coordinates stay small."""

Numbers = npt.NDArray[np.float64]


class Shapes(NamedTuple):
    """Some videos and what is known of them."""

    frames: npt.NDArray[np.uint8]
    """(N, T, 1, S, S)."""
    labels: npt.NDArray[np.int64]
    """(N,): the shape, or the third of the range of speeds."""
    speeds: Numbers
    """(N,) pixels per frame, along the path."""


def bouncing_shapes(
    split: Literal["train", "test"], *, videos: int, frames: int, image_size: int, label: Literal["shape", "speed"]
) -> Shapes:
    """Videos of one white shape each on black.

    Args:
        image_size: S, the side of the canvas in pixels.
    """
    from heliostat_algorithms.randomness import Random

    out = np.empty((videos, frames, 1, image_size, image_size), np.uint8)
    labels, speeds = np.empty(videos, np.int64), np.empty(videos)
    low, room = _MARGIN * image_size, (1 - 2 * _MARGIN) * image_size
    for first in range(0, videos, _CHUNK):
        rows = range(first, min(first + _CHUNK, videos))
        here = slice(first, rows.stop)
        random = Random(0, 0, rows, scope=f"heliostat:bouncing-shapes:{split}")
        shapes = random.integers("shape", len(SHAPES)).numpy()
        share = random.uniform("speed").numpy().astype(np.float64)
        angles = random.uniform("angle").numpy().astype(np.float64) * (2 * math.pi)
        places = random.uniform("place", 2).numpy().astype(np.float64) * room
        speeds[here] = image_size * (SLOWEST + (FASTEST - SLOWEST) * share)
        x = low + _between_walls(places[:, 0], speeds[here] * np.cos(angles), frames, room)
        y = low + _between_walls(places[:, 1], speeds[here] * np.sin(angles), frames, room)
        out[here, :, 0] = _drawn(shapes, x, y, image_size)
        labels[here] = shapes if label == "shape" else (share * len(SPEEDS)).astype(np.int64)
    return Shapes(out, labels, speeds)


def _between_walls(start: Numbers, step: Numbers, frames: int, room: float) -> Numbers:
    """(N, T): places from 0 to ``room`` of what moves by ``step`` (N,) each frame and is thrown back at both ends."""
    way = start[:, None] + step[:, None] * np.arange(frames)
    return room - np.abs(way % (2 * room) - room)


def _drawn(shapes: npt.NDArray[np.int64], x: Numbers, y: Numbers, size: int) -> npt.NDArray[np.uint8]:
    """(N, T, S, S): shapes with their centres at (x, y), each (N, T), in pixels from the upper left corner."""
    centres, radius = np.arange(size) + 0.5, _RADIUS * size
    across = np.abs(centres - x[..., None])[..., None, :]
    down = np.abs(centres - y[..., None])[..., :, None]

    def box(width: float, height: float) -> Numbers:
        return np.maximum(across - width, down - height)

    arm, half = 1.25 * radius, 0.45 * radius
    distances = (  # from the edge in pixels, negative inside
        np.hypot(across, down) - radius,
        box(0.9 * radius, 0.9 * radius),
        np.minimum(box(arm, half), box(half, arm)),
    )
    distance = np.choose(shapes[:, None, None, None], distances)
    return np.rint(255 * np.clip(0.5 - distance, 0, 1)).astype(np.uint8)
