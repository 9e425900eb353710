from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from heliostat.data import VideoData
from heliostat.data.digits import load_digits
from heliostat.data.sources import MovingDigits

DIRECTIONS = ("right", "right-up", "up", "left-up", "left", "left-down", "down", "right-down")


def source(**fields: Any) -> MovingDigits:
    return MovingDigits.model_validate({"source": "moving-digits", "split": "train", "videos": 12, **fields})


def videos(data: VideoData) -> np.ndarray:
    """(videos, frames, S, S)."""
    return data.frames.reshape(len(data), -1, *data.frames.shape[2:])


def test_shape_classes_and_name():
    data = source(videos=5, video_frames=18, clip={"frames": 8, "stride": 2}, image_size=64).load()
    assert data.frames.shape == (90, 1, 64, 64)
    assert data.lengths.tolist() == [18] * 5
    assert (data.clip_frames, data.clip_stride, data.name) == (8, 2, "moving-digits/train")
    assert data.classes == tuple("0123456789")
    assert source(label="direction").load().classes == DIRECTIONS


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("label", ["digit", "direction"])
def test_more_videos_leave_the_first_ones_as_they_are(label, digits):
    few, many = (source(videos=n, label=label, digits=digits).load() for n in (7, 300))
    np.testing.assert_array_equal(videos(few), videos(many)[:7])
    np.testing.assert_array_equal(few.labels, many.labels[:7])


def test_they_never_change():
    """Numbers that people compare depend on them: a change of these digests is a change of the data set."""
    prints = [
        source(split=split, videos=20, digits=2, label=label).load().fingerprint[:16]
        for split, label in (("train", "digit"), ("test", "digit"), ("train", "direction"))
    ]
    assert prints == ["5a2e810acb0c2853", "8260be462611a6a8", "457d66b6b7d6f3c6"]


def test_the_class_is_the_digit_that_is_seen():
    """In every frame the whole digit is found, an enlarged one of its class, and nothing else."""
    images = load_digits("test")
    known: dict[int, set[bytes]] = {number: set() for number in range(10)}
    for image, label in zip(images.images[:, 0], images.labels, strict=True):
        enlarged = Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)
        known[int(label)].add(np.asarray(enlarged).tobytes())
    data = source(split="test", videos=10, video_frames=16).load()
    assert len(set(data.labels.tolist())) > 3
    for video, label in zip(videos(data), data.labels, strict=True):
        for frame in video[::5]:
            corners = [(y, x) for y in range(17) for x in range(17)]
            found = [(y, x) for y, x in corners if frame[y : y + 16, x : x + 16].tobytes() in known[int(label)]]
            assert found
            y, x = found[0]
            assert frame[y : y + 16, x : x + 16].sum() == frame.sum()


@pytest.mark.parametrize("size", [32, 64])
def test_digits_bounce_off_the_edges(size):
    """They come near all edges, stay inside and never jump."""
    data = videos(source(videos=40, video_frames=40, image_size=size).load()).astype(float)
    assert np.ptp(data.sum(axis=(2, 3)), axis=1).max() == 0  # the whole digit, in every frame
    weights, total = np.arange(size), data.sum(axis=(2, 3))
    for centre in ((data.sum(axis=2) @ weights) / total, (data.sum(axis=3) @ weights) / total):
        assert np.abs(np.diff(centre)).max() <= 0.075 * size + 1.01
        assert centre.min() < size * 0.3
        assert centre.max() > size * 0.65
        assert (np.sign(np.diff(centre)[:, -1]) != np.sign(np.diff(centre)[:, 0])).mean() > 0.2


def test_the_direction_is_the_motion_on_a_ring():
    """The shift between two frames, from the peak of their circular correlation."""
    data = source(videos=200, video_frames=16, label="direction").load()
    assert set(data.labels.tolist()) == set(range(8))
    for video, label in zip(videos(data).astype(float), data.labels, strict=True):
        for first in (0, 10):
            spectra = np.fft.fft2(video[[first, first + 5]])
            correlation = np.fft.ifft2(spectra[1] * spectra[0].conj()).real
            y, x = (n - 32 if n > 16 else n for n in np.unravel_index(correlation.argmax(), (32, 32)))
            assert 0.025 * 32 * 5 - 1.5 <= math.hypot(x, y) <= 0.075 * 32 * 5 + 1.5
            assert round(math.atan2(-y, x) / (math.pi / 4)) % 8 == label


def test_one_frame_does_not_tell_the_direction():
    """Where a digit is on the ring (the phase of the lowest frequency) is spread evenly in each class."""
    data = source(videos=4000, video_frames=4, clip={"frames": 2}, label="direction").load()
    for frame in (0, 3):
        columns = videos(data)[:, frame].sum(axis=1, dtype=float)
        phase = (columns @ np.exp(2j * np.pi * np.arange(32) / 32)) / columns.sum(axis=1)
        phase /= np.abs(phase)
        for label in range(8):
            own = phase[data.labels == label]
            assert len(own) > 400
            assert abs(own.mean()) < 4 / math.sqrt(len(own))  # Rayleigh: less by far than 1e-6 of even ones are above


def test_a_second_digit_is_half_as_bright_and_changes_nothing_else():
    for label in ("digit", "direction"):
        one, two = (source(videos=30, digits=digits, label=label).load() for digits in (1, 2))
        np.testing.assert_array_equal(one.labels, two.labels)
        assert (two.frames >= one.frames).all()
        assert two.frames[two.frames > one.frames].max() <= 127
        assert ((two.frames > one.frames).sum(axis=(1, 2, 3)) > 20).mean() > 0.9


def test_splits_show_other_digits_and_paths():
    train, test = (source(split=split).load() for split in ("train", "test"))
    assert not (videos(train) == videos(test)).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize(
    "fields",
    [{"videos": 0}, {"digits": 3}, {"image_size": 48}, {"label": "speed"}, {"clip": {"frames": 0}}, {"clip": {"t": 1}}],
)
def test_wrong_fields_are_refused(fields):
    with pytest.raises(ValidationError):
        source(**fields)


def test_videos_shorter_than_a_clip_are_refused():
    with pytest.raises(ValidationError, match="spans 31 frames, so videos of 20 are too short"):
        source(clip={"frames": 16, "stride": 2})
