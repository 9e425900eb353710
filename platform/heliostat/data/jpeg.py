"""JPEG through simplejpeg where it is installed: the pixels that Pillow gives, in less time.

Both use libjpeg-turbo; what Pillow's way around it costs is saved. Only what is known to give the same pixels bit for
bit goes this way, so a run does not depend on whether the package is there: colour JPEG of the usual kind without any
fault. All else, and whatever simplejpeg finds fault with, is left to Pillow, which also says what is wrong.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

_BEGINNING = b"\xff\xd8\xff"


@cache
def _library() -> Any:
    """The package, or None."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def decode_jpeg(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8] | None:
    """(H, W, 3) RGB; None where the image is Pillow's to decode."""
    library = _library()
    if library is None or not data.startswith(_BEGINNING):
        return None
    try:
        height, width, space, _ = library.decode_jpeg_header(data, strict=True)
        if space != "YCbCr" or height * width > max_pixels:
            return None
        pixels: npt.NDArray[np.uint8] = library.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None
    return pixels
