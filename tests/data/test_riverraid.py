from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from heliostat.data import DataSource, VideoData
from heliostat.data.atari import Shape
from heliostat.data.riverraid import record_speeds

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSource)


def stretches(cache: str, **fields: Any) -> Any:
    return ADAPTER.validate_python(
        {
            "source": "atari-clips", "games": "riverraid", "label": "river-speed", "split": "train", "videos": 120,
            "clip": {"frames": 4}, "frame_skip": 4, "image_size": 160, "channels": 1, "cache": cache,
        } | fields
    )  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def river(cache: str) -> VideoData:
    return stretches(cache).load()


def scroll(first: np.ndarray, second: np.ndarray) -> int:
    """Pixels by which the picture moved down, by the land on both sides; -1 where nothing is seen."""
    first, second = (np.concatenate([p[30:120, 8:40], p[30:120, 125:155]], axis=1).astype(int) for p in (first, second))
    if (first != second).mean() < 0.02:
        return -1
    differences = [np.abs(second[shift:] - first[: len(first) - shift]).mean() for shift in range(12)]
    return int(np.argmin(differences))


def test_speeds_are_those_at_which_the_river_passes(river):
    frames = river.frames.reshape(-1, 4, 160, 160)
    # Rows of the screen per frame of the emulator, times four frames, in pictures that are 160 of 210 rows high.
    for name, rows in {"slow": 0.5, "cruise": 1.0, "fast": 2.0}.items():
        own = frames[river.labels == river.classes.index(name)]
        assert len(own) == 40
        seen = [scroll(video[i], video[i + 1]) for video in own for i in range(3)]
        seen = [shift for shift in seen if shift >= 0]
        assert len(seen) > 20
        expected = rows * 4 * 160 / 210
        assert np.mean(np.abs(np.array(seen) - expected) < 1) > 0.9, name


def test_single_frames_do_not_tell_the_speed(cache):
    """Neither pixels nor the place in the river: nearest neighbours and a straight line are near chance, a third."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    train, test = (stretches(cache, split=split, videos=400, image_size=24).load() for split in ("train", "test"))
    pixels = [data.frames.reshape(400, 4, -1)[:, 1] / 255 for data in (train, test)]
    for model in (KNeighborsClassifier(9), LogisticRegression(max_iter=300, C=0.1)):
        score = model.fit(pixels[0], train.labels).score(pixels[1], test.labels)
        assert score < 1 / 3 + 4.5 * (2 / 9 / 400) ** 0.5


def test_the_plane_is_never_lost_and_the_river_differs(river):
    frames = river.frames.reshape(-1, 4, 160, 160)
    water = (frames[:, :, :120] == 64).mean(axis=(2, 3))
    assert (water > 0.1).mean() > 0.98  # the screen between two planes shows none; a bridge that bursts lights all up
    assert len(np.unique(frames[:, 0].reshape(len(frames), -1), axis=0)) > 0.9 * len(frames)  # matches begin alike


def test_recordings_are_functions_of_their_settings():
    shape = Shape(frames=2, frame_skip=2, image_size=32, channels=1)
    (first, labels), (second, again) = (record_speeds("train", 9, shape) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(labels, again)
    assert np.bincount(labels).tolist() == [3, 3, 3]
    other, _ = record_speeds("test", 9, shape)
    assert not {video.tobytes() for video in first} & {video.tobytes() for video in other}


def test_colours_show_the_same_match():
    grey, _ = record_speeds("train", 6, Shape(frames=2, frame_skip=2, image_size=32, channels=1))
    colours, _ = record_speeds("train", 6, Shape(frames=2, frame_skip=2, image_size=32, channels=3))
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(np.einsum("c,vtchw->vthw", weights, colours), grey[:, :, 0], atol=3)


def test_other_games_have_no_river():
    with pytest.raises(ValidationError, match="known of riverraid alone, not of pong"):
        stretches("cache", games="pong")
