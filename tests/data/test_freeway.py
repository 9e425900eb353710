from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from heliostat.data import DataSource, VideoData
from heliostat.data.atari import Shape
from heliostat.data.freeway import record_traffic
from heliostat.errors import InputError

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSource)


def traffic(cache: str, **fields: Any) -> Any:
    return ADAPTER.validate_python(
        {
            "source": "atari-clips", "games": "freeway", "label": "traffic-speed", "split": "train", "videos": 90,
            "clip": {"frames": 4}, "frame_skip": 4, "image_size": 160, "channels": 1, "cache": cache,
        } | fields
    )  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def road(cache: str) -> VideoData:
    return traffic(cache).load()


def moved(first: np.ndarray, second: np.ndarray) -> int | None:
    """Columns by which the cars of a lane (rows, 152) went right; None where hardly anything is seen."""
    background = np.median(first, axis=1, keepdims=True)
    if min((np.abs(picture - background) > 8).mean() for picture in (first, second)) < 0.01:
        return None
    reach = 12
    inside = first[:, reach:-reach]
    differences = [
        np.abs(second[:, reach + shift : second.shape[1] - reach + shift] - inside).mean()
        for shift in range(-reach, reach + 1)
    ]
    return int(np.argmin(differences)) - reach if min(differences) < 0.2 * max(differences) else None


def test_cars_go_as_fast_as_the_label_says_and_lanes_their_own_way(road):
    frames = road.frames.reshape(-1, 4, 160, 160).astype(float)
    top = np.array([27 + 16 * lane for lane in range(10)]) * 160 // 210  # of 10 lanes, between the dashes
    seen: dict[str, list[tuple[int, int]]] = {name: [] for name in road.classes}
    for video, label in zip(frames, road.labels, strict=True):
        for lane, row in enumerate(top):
            for i in range(3):
                # Without the black bar on the left, behind which cars come and go.
                shift = moved(video[i, row : row + 7, 8:], video[i + 1, row : row + 7, 8:])
                if shift is not None:
                    seen[road.classes[label]].append((lane, shift))
    for name, columns in {"slow": 2, "medium": 4, "fast": 8}.items():  # in four frames of the emulator
        assert len(seen[name]) > 300, name
        right = [shift == (-columns if lane < 5 else columns) for lane, shift in seen[name]]
        assert np.mean(right) > 0.9, name  # cars that come and go are seen badly


def test_single_frames_do_not_tell_the_speed(cache):
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    train, test = (traffic(cache, split=split, videos=600, image_size=32).load() for split in ("train", "test"))
    for frame in (0, 3):
        pixels = [data.frames.reshape(600, 4, -1)[:, frame] / 255 for data in (train, test)]
        for model in (KNeighborsClassifier(9), LogisticRegression(max_iter=300, C=0.1)):
            score = model.fit(pixels[0], train.labels).score(pixels[1], test.labels)
            assert score < 1 / 3 + 4.5 * (2 / 9 / 600) ** 0.5, (frame, model)


def test_every_video_has_other_cars(road):
    frames = road.frames.reshape(-1, 4, 160, 160)
    assert len(np.unique(frames[:, 0].reshape(len(frames), -1), axis=0)) == len(frames)


def test_recordings_are_functions_of_their_settings():
    shape = Shape(frames=2, frame_skip=2, image_size=32, channels=1)
    (first, labels), (second, again) = (record_traffic("train", 9, shape) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(labels, again)
    assert np.bincount(labels).tolist() == [3, 3, 3]
    other, _ = record_traffic("test", 9, shape)
    assert not {video.tobytes() for video in first} & {video.tobytes() for video in other}


def test_colours_show_the_same_match():
    grey, _ = record_traffic("train", 6, Shape(frames=2, frame_skip=2, image_size=32, channels=1))
    colours, _ = record_traffic("train", 6, Shape(frames=2, frame_skip=2, image_size=32, channels=3))
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(np.einsum("c,vtchw->vthw", weights, colours), grey[:, :, 0], atol=3)


def test_videos_longer_than_a_match_end_in_words():
    with pytest.raises(InputError, match="within 9001 frames of play; take shorter videos"):
        record_traffic("train", 3, Shape(frames=2, frame_skip=9000, image_size=32, channels=1))


def test_other_games_have_no_traffic():
    with pytest.raises(ValidationError, match="known of freeway alone, not of pong"):
        traffic("cache", games="pong")
