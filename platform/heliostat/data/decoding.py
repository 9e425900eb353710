"""Encoded images to one array: JPEG, PNG and their like through Pillow, once, before training.

Pixels become 8-bit RGB or grey. Alpha is dropped, 16-bit grey is scaled (Pillow itself would clip it to white), an
animation gives its first frame. EXIF orientation is ignored, as in the loaders with which the papers' numbers were
measured. An image that cannot be decoded is left out, counted and named.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from heliostat.data.images import CorruptItem, Progress
from heliostat.data.jpeg import decode_jpeg
from heliostat.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is decoded; Pillow knows more, some of which start other programs."""

MAX_PIXELS = 2**27
"""A larger image is taken for a decompression bomb."""

_DECODER_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's word for a broken PNG
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

THREADED_BYTES = 8192
"""Mean encoded size from which threads pay: decoding smaller images is mostly Python, which one thread does best."""

_MAX_THREADS = 16
"""What remains in Python leaves no work for more."""


class CorruptImage(Exception):  # noqa: N818 - handled where it happens, never shown as an error
    """An image that cannot be decoded; the message is the reason."""


class Encoded(Sized, Protocol):
    """Some encoded images in a row."""

    def where(self, position: int) -> str:
        """The name of an image, for messages."""

    def read(self, position: int) -> bytes | None:
        """An image's bytes; None where they are missing."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What ``decode`` gives back."""

    images: npt.NDArray[np.uint8]
    """(K, C, H, W): the good images, in order."""
    kept: npt.NDArray[np.int64]
    """(K,): their positions among all."""
    corrupt: tuple[CorruptItem, ...]


def decode_image(data: bytes | None, *, channels: int, image_size: int | None) -> npt.NDArray[np.uint8]:
    """One image as (C, H, W) uint8.

    Args:
        channels: 3 for RGB, 1 for grey.
        image_size: the shorter side is resized to this many pixels (bicubic, antialiased), then the centre square is
            cut out; None leaves the image as it is.

    Raises:
        CorruptImage: it cannot be decoded.
    """
    image = open_image(data, channels=channels)
    if image_size is not None:
        image = _square(image, image_size)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def open_image(data: bytes | None, *, channels: int) -> Image.Image:
    """One image, decoded, with 8 bits in each of 3 (RGB) or 1 (grey) channels.

    Raises:
        CorruptImage: it cannot be decoded.
    """
    if not data:
        raise CorruptImage("it has no bytes")
    if channels == 3 and (pixels := decode_jpeg(data, MAX_PIXELS)) is not None:
        return Image.fromarray(pixels)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise CorruptImage(f"it has {image.width} x {image.height} pixels, which looks like a decompression bomb")
        image.load()
    except UnidentifiedImageError as error:
        raise CorruptImage(f"it is none of {', '.join(FORMATS)}") from error
    except _DECODER_ERRORS as error:
        raise CorruptImage(str(error) or type(error).__name__) from error
    return _eight_bits(image, "RGB" if channels == 3 else "L")


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise CorruptImage(f"its 32-bit pixels (mode {image.mode}) have no range that could be scaled to 8 bits")
    try:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        elif image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            image = image.convert("RGB")  # the only way that Pillow knows from CMYK or YCbCr to grey
        return image.convert(mode)
    except ValueError as error:
        raise CorruptImage(f"its pixels (mode {image.mode}) cannot be turned into {mode}: {error}") from error


def _square(image: Image.Image, size: int) -> Image.Image:
    shorter = min(image.size)
    if shorter != size:
        width, height = (max(size, round(side * size / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def decoding_threads() -> int:
    """Threads that are worth starting for decoding on this machine."""
    return min(_MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class _Canvas:
    """The array that all images are written into; its size is that of the first good image."""

    def __init__(self, count: int, channels: int, image_size: int | None) -> None:
        self.count, self.channels, self.image_size = count, channels, image_size
        self.pixels: npt.NDArray[np.uint8] | None = None
        self.first = ""

    def fill(self, row: int, chunk: Encoded) -> tuple[list[tuple[int, CorruptItem]], int]:
        """Decode a chunk into the rows from ``row``; gives the rows that are corrupt and how many bytes were read."""
        corrupt, size = [], 0
        for position in range(len(chunk)):
            data = chunk.read(position)
            size += len(data or b"")
            try:
                pixels = decode_image(data, channels=self.channels, image_size=self.image_size)
            except CorruptImage as reason:
                corrupt.append((row + position, CorruptItem(chunk.where(position), str(reason))))
                continue
            if self.pixels is None:
                self.pixels = np.empty((self.count, *pixels.shape), np.uint8)
                self.first = chunk.where(position)
            elif pixels.shape != self.pixels.shape[1:]:
                (_, height, width), (_, height0, width0) = pixels.shape, self.pixels.shape[1:]
                raise InputError(
                    f"images must have one size, but {self.first} is {width0} x {height0} pixels and "
                    f"{chunk.where(position)} is {width} x {height}; image_size: {min(width, height, width0, height0)} "
                    "would resize and crop all to one square"
                )
            self.pixels[row + position] = pixels
        return corrupt, size


def decode(
    chunks: Iterable[Encoded],
    count: int,
    *,
    channels: int,
    image_size: int | None,
    max_corrupt: float,
    name: str,
    progress: Progress | None = None,
) -> Decoded:
    """Decode ``count`` images, given in chunks of a hundred or so, in parallel where they are large.

    Args:
        channels, image_size: as in ``decode_image``.
        max_corrupt: the share of images, 0 to 1, that may be corrupt.
        name: of the data set, for messages.

    Raises:
        InputError: more images are corrupt, or none is good, or their sizes differ while ``image_size`` is None.
    """
    canvas = _Canvas(count, channels, image_size)
    corrupt: list[tuple[int, CorruptItem]] = []
    running: deque[Future[tuple[list[tuple[int, CorruptItem]], int]]] = deque()
    threads = decoding_threads()
    row, small = 0, True

    def tell(done: int) -> None:
        if progress is not None:
            progress(f"decoding {name}", done, count)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for chunk in chunks:
                # Chunks are decoded here until one image is good: the size must not depend on the threads' timing.
                if canvas.pixels is None or small:
                    found, size = canvas.fill(row, chunk)
                    corrupt += found
                    small = size < len(chunk) * THREADED_BYTES
                else:
                    running.append(pool.submit(canvas.fill, row, chunk))
                    if len(running) > 2 * threads:
                        corrupt += running.popleft().result()[0]
                row += len(chunk)
                tell(row)
            for future in running:
                corrupt += future.result()[0]
            if row != count:
                raise InputError(f"{name} announces {count} images but holds {row}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return _without(corrupt, canvas.pixels, count, max_corrupt, name)


def _without(
    corrupt: list[tuple[int, CorruptItem]],
    pixels: npt.NDArray[np.uint8] | None,
    count: int,
    max_corrupt: float,
    name: str,
) -> Decoded:
    corrupt.sort(key=lambda found: found[0])
    items = tuple(item for _, item in corrupt)
    first = "; ".join(f"{item.where}: {item.why}" for item in items[:5]) + ("; ..." if len(items) > 5 else "")
    if len(items) > max_corrupt * count:
        raise InputError(
            f"{len(items)} of {count} images of {name} cannot be decoded ({first}). Repair them, or set "
            f"max_corrupt: {math.ceil(len(items) / count * 1e4) / 1e4} to leave them out"
        )
    if pixels is None:
        raise InputError(f"none of the {count} images of {name} can be decoded ({first})")
    kept = np.delete(np.arange(count), [row for row, _ in corrupt])
    return Decoded(images=pixels[kept] if items else pixels, kept=kept, corrupt=items)
