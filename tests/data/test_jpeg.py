"""The quick way to decode JPEG gives Pillow's pixels, and leaves to Pillow what is not of the usual kind."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from heliostat.data import jpeg
from heliostat.data.decoding import MAX_PIXELS, CorruptImage, decode_image

pytest.importorskip("simplejpeg")


def encoded(pixels: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return load_sample_images().images[0]


@pytest.mark.parametrize("size", [(427, 640), (201, 333), (17, 9), (1, 1)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_are_pillows_bit_for_bit(photograph, size, subsampling, progressive):
    for quality in (30, 90, 100):
        data = encoded(
            photograph[: size[0], : size[1]], quality=quality, subsampling=subsampling, progressive=progressive
        )
        found = jpeg.decode_jpeg(data, MAX_PIXELS)
        assert found is not None
        np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_other_kinds_are_left_to_pillow(photograph, monkeypatch):
    grey, cmyk = (encoded(photograph[:20, :30], mode) for mode in ("L", "CMYK"))
    plain = encoded(photograph[:20, :30])
    png = io.BytesIO()
    Image.fromarray(photograph[:20, :30]).save(png, "PNG")
    for data in (grey, cmyk, png.getvalue(), plain[: len(plain) // 2], plain[:20], b"\xff\xd8\xff" + b"no" * 50):
        assert jpeg.decode_jpeg(data, MAX_PIXELS) is None
    assert jpeg.decode_jpeg(plain, 20 * 30 - 1) is None
    with pytest.raises(CorruptImage):
        decode_image(plain[: len(plain) // 2], channels=3, image_size=None)
    used = decode_image(plain, channels=3, image_size=16)
    monkeypatch.setattr(jpeg, "_library", lambda: None)
    np.testing.assert_array_equal(decode_image(plain, channels=3, image_size=16), used)
