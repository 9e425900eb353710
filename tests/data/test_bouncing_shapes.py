from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from heliostat.data import VideoData
from heliostat.data.bouncing_shapes import FASTEST, SHAPES, SLOWEST, SPEEDS, bouncing_shapes
from heliostat.data.sources import BouncingShapes
from heliostat_algorithms.evaluation.video_motion import centres, speeds


def source(**fields: Any) -> BouncingShapes:
    return BouncingShapes.model_validate({"source": "bouncing-shapes", "split": "train", "videos": 12, **fields})


def videos(data: VideoData) -> np.ndarray:
    """(videos, frames, S, S)."""
    return data.frames.reshape(len(data), -1, *data.frames.shape[2:])


def test_shape_classes_and_name():
    data = source(videos=5).load()
    assert data.frames.shape == (40, 1, 16, 16)
    assert (data.clip_frames, data.name, data.classes) == (8, "bouncing-shapes/train", SHAPES)
    data = source(label="speed", video_frames=20, clip={"frames": 4, "stride": 2}, image_size=32).load()
    assert (data.frames.shape, data.classes) == ((240, 1, 32, 32), SPEEDS)


def test_more_videos_and_longer_ones_leave_the_first_frames_as_they_are():
    few, many, long = source(videos=7).load(), source(videos=600).load(), source(videos=7, video_frames=12).load()
    np.testing.assert_array_equal(videos(few), videos(many)[:7])
    np.testing.assert_array_equal(videos(few), videos(long)[:, :8])
    np.testing.assert_array_equal(few.labels, many.labels[:7])


def test_splits_show_other_videos():
    train, test = (source(split=split).load() for split in ("train", "test"))
    assert not (videos(train) == videos(test)).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize("size", [16, 32])
def test_speeds_are_uniform_and_the_label_is_their_third(size: int):
    made = bouncing_shapes("train", videos=3000, frames=2, image_size=size, label="speed")
    share = (made.speeds / size - SLOWEST) / (FASTEST - SLOWEST)
    even = (np.arange(3000) + 0.5) / 3000
    assert np.abs(np.sort(share) - even).max() < 1.63 / math.sqrt(3000)  # Kolmogorov and Smirnov, 1 %
    np.testing.assert_array_equal(made.labels, np.floor(3 * share))


def test_the_tracker_finds_the_speed_that_was_drawn():
    made = bouncing_shapes("train", videos=500, frames=8, image_size=16, label="shape")
    found = speeds(torch.from_numpy(made.frames).float() / 255).numpy()
    wrong = np.abs(found - made.speeds)
    assert np.median(wrong) < 0.03
    assert (wrong < 0.15).mean() > 0.95
    assert abs(found.mean() - made.speeds.mean()) < 0.03


def test_shapes_stay_whole_move_evenly_and_bounce():
    made = bouncing_shapes("test", videos=300, frames=40, image_size=16, label="shape")
    light = made.frames.astype(float).sum(axis=(2, 3, 4))
    assert (np.ptp(light, axis=1) / light.mean(axis=1)).max() < 0.1
    steps = centres(torch.from_numpy(made.frames).float() / 255).diff(dim=1)
    assert float(steps.norm(dim=2).max()) < 16 * FASTEST + 0.25
    assert float((steps[:, -1].sign() != steps[:, 0].sign()).double().mean()) > 0.3


def test_shapes_differ():
    made = bouncing_shapes("train", videos=300, frames=1, image_size=32, label="shape")
    light = made.frames.astype(float).sum(axis=(1, 2, 3, 4)) / 255
    radius = 0.16 * 32
    expected = [math.pi * radius**2, (1.8 * radius) ** 2, 2 * 2.5 * 0.9 * radius**2 - (0.9 * radius) ** 2]
    for label, area in enumerate(expected):
        assert light[made.labels == label].mean() == pytest.approx(area, rel=0.08)


def test_they_never_change():
    """Numbers that people compare depend on them: a change of these digests is a change of the data set."""
    prints = [source(split=split, videos=20, label=label).load().fingerprint[:16] for split, label in CASES]
    assert prints == PRINTS


CASES = [("train", "shape"), ("test", "shape"), ("train", "speed")]
PRINTS = ["bb1ed7a68bfa57cf", "52f26bb40cf67f83", "1fa642686fdf4c5c"]


@pytest.mark.parametrize("fields", [{"videos": 0}, {"image_size": 20}, {"label": "digit"}, {"digits": 1}])
def test_wrong_fields_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValidationError):
        source(**fields)


def test_videos_shorter_than_a_clip_are_refused():
    with pytest.raises(ValidationError, match="spans 15 frames, so videos of 8 are too short"):
        source(clip={"frames": 8, "stride": 2})
