from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from heliostat.data import decoding
from heliostat.data.decoding import CorruptImage, Decoded, decode, decode_image
from heliostat.errors import InputError


@dataclass
class Chunk:
    data: list[bytes | None]
    first: int = 0

    def __len__(self) -> int:
        return len(self.data)

    def where(self, position: int) -> str:
        return f"f:{self.first + position}"

    def read(self, position: int) -> bytes | None:
        return self.data[position]


def decode_all(items: list[bytes | None], size: int | None = None, corrupt: float = 0.0, chunk: int = 4) -> Decoded:
    chunks = [Chunk(items[first : first + chunk], first) for first in range(0, len(items), chunk)]
    return decode(chunks, len(items), channels=3, image_size=size, max_corrupt=corrupt, name="toy")


def test_rgb_pixels_come_back_exactly(encode, pictures):
    for pixels in pictures:
        np.testing.assert_array_equal(
            decode_image(encode(pixels), channels=3, image_size=None), np.moveaxis(pixels, 2, 0)
        )


def test_grey_becomes_three_equal_channels_and_rgb_becomes_luma(encode):
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    np.testing.assert_array_equal(decode_image(encode(grey), channels=3, image_size=None), np.stack([grey] * 3))
    colour = np.array([[[10, 200, 60], [250, 3, 130]]], np.uint8)
    luma = colour.astype(float) @ [0.299, 0.587, 0.114]  # ITU-R 601-2
    np.testing.assert_allclose(decode_image(encode(colour), channels=1, image_size=None)[0], luma, atol=1)


def test_sixteen_bit_grey_is_scaled_not_clipped(encode):
    wide = np.array([[0, 257, 1000], [32768, 65278, 65535]], np.uint16)
    expected = np.round(wide.astype(np.float64) / 65535 * 255)
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode_image(encode(wide, form), channels=1, image_size=None)[0], expected)
        np.testing.assert_array_equal(decode_image(encode(wide, form), channels=3, image_size=None)[2], expected)


def test_palette_with_and_without_transparency(encode):
    pixels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 0, 0]]], np.uint8)
    expected = np.moveaxis(pixels, 2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({}, {"transparency": b"\x00\x80\xff"}):
            data = encode(pixels, "PNG", "P", **options)
            np.testing.assert_array_equal(decode_image(data, channels=3, image_size=None), expected)


def test_alpha_is_dropped(encode):
    pixels = np.array([[[9, 8, 7, 0], [100, 110, 120, 128]]], np.uint8)
    np.testing.assert_array_equal(
        decode_image(encode(pixels), channels=3, image_size=None), np.moveaxis(pixels[..., :3], 2, 0)
    )
    grey = np.array([[[77, 0], [5, 128]]], np.uint8)
    np.testing.assert_array_equal(decode_image(encode(grey), channels=1, image_size=None)[0], grey[..., 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_cmyk_jpeg_becomes_its_colour(encode, channels):
    cyan = np.zeros((16, 16, 3), np.uint8)
    cyan[..., 1:] = 255
    got = decode_image(encode(cyan, "JPEG", "CMYK"), channels=channels, image_size=None)
    expected = [0, 255, 255] if channels == 3 else [0.587 * 255 + 0.114 * 255]
    np.testing.assert_allclose(got.mean((1, 2)), expected, atol=4)


def test_one_bit_images_are_black_and_white(encode):
    pixels = np.array([[0, 255], [255, 0]], np.uint8)
    np.testing.assert_array_equal(decode_image(encode(pixels, mode="1"), channels=1, image_size=None)[0], pixels)


def test_orientation_is_ignored(encode, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    got = decode_image(encode(pictures[0], "PNG", exif=exif), channels=3, image_size=None)
    assert got.shape == (3, 6, 5)


def test_floating_point_pixels_are_corrupt(encode):
    with pytest.raises(CorruptImage, match="mode F"):
        decode_image(encode(np.ones((3, 3), np.float32), "TIFF"), channels=1, image_size=None)


def test_square_keeps_the_centre(encode):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    got = decode_image(encode(wide), channels=3, image_size=4)
    np.testing.assert_array_equal(got, np.full((3, 4, 4), 200))


@pytest.mark.parametrize(("height", "width"), [(30, 41), (41, 30), (7, 9), (16, 16)])
def test_square_has_the_size_asked_for_and_keeps_the_mean(encode, height, width):
    ramp = np.broadcast_to(np.linspace(0, 240, width).astype(np.uint8)[None, :, None], (height, width, 3))
    got = decode_image(encode(np.ascontiguousarray(ramp)), channels=3, image_size=16)
    assert got.shape == (3, 16, 16)
    assert abs(float(got.mean()) - 120) < 8  # an odd remainder moves the centre by half a pixel of up to 15 levels


def test_resizing_is_antialiased(encode):
    checkered = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = decode_image(encode(checkered), channels=1, image_size=8)
    assert np.abs(got.astype(int) - 127).max() <= 12  # picking pixels would give 0 or 255


@pytest.mark.parametrize("cut", [1, 30, 200, -20])
def test_truncated_jpeg_is_corrupt(encode, cut):
    data = encode(np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8), "JPEG")
    with pytest.raises(CorruptImage):
        decode_image(data[:cut], channels=3, image_size=None)


@pytest.mark.parametrize(("data", "why"), [(None, "no bytes"), (b"", "no bytes"), (b"%PDF-1.4 text", "none of JPEG")])
def test_what_is_no_image_is_corrupt(data, why):
    with pytest.raises(CorruptImage, match=why):
        decode_image(data, channels=3, image_size=None)


def test_decompression_bomb_is_corrupt_before_it_explodes(encode, monkeypatch):
    data = encode(np.zeros((40, 50), np.uint8))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1999)
    with pytest.raises(CorruptImage, match="50 x 40 pixels"):
        decode_image(data, channels=1, image_size=None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # Pillow's own limit
    with pytest.raises(CorruptImage, match="decompression bomb"):
        decode_image(data, channels=1, image_size=None)


def test_damaged_bytes_never_escape_as_other_errors(encode):
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
    reasons = []
    for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        good = np.frombuffer(encode(pixels, form), np.uint8)
        for _ in range(150):
            bad = good.copy()
            bad[rng.integers(0, min(len(bad), 120), 4)] = rng.integers(0, 256, 4)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    decode_image(bad[: rng.integers(1, len(bad) + 1)].tobytes(), channels=3, image_size=4)
                except CorruptImage as reason:
                    reasons.append(str(reason))
    assert len(reasons) > 300
    assert all(reasons)


def test_one_corrupt_image_is_an_error_that_names_it_and_the_way_out(encode, pictures):
    items = [encode(pixels) for pixels in pictures]
    items[7] = items[7][:40]
    with pytest.raises(InputError, match=r"1 of 12 images of toy cannot be decoded \(f:7: .*max_corrupt: 0.0834 to"):
        decode_all(items)


def test_corrupt_images_within_the_share_are_left_out_and_named(encode, pictures):
    items = [encode(pixels) for pixels in pictures]
    items[0], items[7] = None, b"nonsense"
    decoded = decode_all(items, corrupt=0.1667)
    kept = [row for row in range(12) if row not in (0, 7)]
    np.testing.assert_array_equal(decoded.kept, kept)
    np.testing.assert_array_equal(decoded.images, np.moveaxis(pictures[kept], 3, 1))
    assert [item.where for item in decoded.corrupt] == ["f:0", "f:7"]
    with pytest.raises(InputError, match="2 of 12"):
        decode_all(items, corrupt=0.16)


def test_share_that_the_error_proposes_is_enough(encode, pictures):
    items = [encode(pixels) for pixels in pictures]
    items[3] = b"x"
    with pytest.raises(InputError) as error:
        decode_all(items)
    proposed = float(str(error.value).split("max_corrupt: ")[1].split()[0])
    assert len(decode_all(items, corrupt=proposed).images) == 11


def test_only_corrupt_images_are_an_error_whatever_is_allowed():
    with pytest.raises(InputError, match="none of the 3 images"):
        decode_all([b"a", b"b", None], corrupt=1.0)


def test_two_sizes_name_both_files_and_propose_a_size(encode, pictures):
    items = [encode(pixels) for pixels in pictures]
    items[6] = encode(pictures[6][:4])
    with pytest.raises(InputError, match=r"f:0 is 5 x 6 pixels and f:6 is 5 x 4; image_size: 4 "):
        decode_all(items)
    assert decode_all(items, size=4).images.shape == (12, 3, 4, 4)


def test_threads_and_one_thread_give_the_same(encode, pictures, monkeypatch):
    items = [encode(pixels) for pixels in np.concatenate([pictures] * 4)]
    items[9] = items[30] = b"bad"
    alone = decode_all(items, corrupt=0.1)
    used: set[int] = set()
    plain = decode_image

    def spy(*args, **kwargs):
        used.add(threading.get_ident())
        return plain(*args, **kwargs)

    monkeypatch.setattr(decoding, "THREADED_BYTES", 0)
    monkeypatch.setattr(decoding, "decode_image", spy)
    threaded = decode_all(items, corrupt=0.1)
    assert used - {threading.get_ident()}, "no other thread decoded anything"
    np.testing.assert_array_equal(alone.images, threaded.images)
    np.testing.assert_array_equal(alone.kept, threaded.kept)
    assert alone.corrupt == threaded.corrupt
    items[40] = encode(pictures[0][:4])
    with pytest.raises(InputError, match="f:40 is 5 x 4"):
        decode_all(items, corrupt=0.1)


def test_progress_reaches_the_end(encode, pictures):
    told = []
    chunks = [Chunk([encode(pixels) for pixels in pictures[:6]]), Chunk([encode(pixels) for pixels in pictures[6:]], 6)]
    decode(
        chunks, 12, channels=3, image_size=None, max_corrupt=0.0, name="toy", progress=lambda *seen: told.append(seen)
    )
    assert told == [("decoding toy", 6, 12), ("decoding toy", 12, 12)]


def test_missing_rows_never_become_random_pixels(encode, pictures):
    items = [encode(pixels) for pixels in pictures]
    with pytest.raises(InputError, match="announces 13 images but holds 12"):
        decode([Chunk(items)], 13, channels=3, image_size=None, max_corrupt=0.0, name="toy")
