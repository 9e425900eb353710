from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.data import ImageData, Loader, VideoData
from heliostat.data.loader import sequential
from heliostat.data.samples import fraction_of
from heliostat.errors import InputError
from heliostat.training import launch
from heliostat.training.datasets import Datasets, check_alike
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.representation.simclr import SimCLR

LENGTHS = [7, 12, 8, 30, 9, 7, 11, 10, 16, 7, 13, 8]
"""Of twelve videos; a clip of 4 frames at stride 2 spans 7."""


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def places(batch: dict[str, torch.Tensor]) -> list[int]:
    """In which frame of its video each clip, or image, begins."""
    pictures = batch["video"][:, 0] if "video" in batch else batch["image"]
    return pictures[:, 1, 0, 0].tolist()


def test_spec_length_and_numbers(toy_videos):
    data = toy_videos(LENGTHS)
    assert (data.spec().image_shape, data.spec().classes, data.spec().frames) == ((3, 2, 4), 3, 4)
    assert (len(data), data.span, data.lengths.tolist()) == (12, 7, LENGTHS)
    assert data.numbers_per_sample == 4 * 3 * 2 * 4
    assert toy_videos(LENGTHS, labels=False).spec().classes is None
    image = ImageData(images=np.zeros((5, 3, 2, 4), np.uint8), labels=None, classes=(), name="image")
    assert (image.numbers_per_sample, image.spec().frames) == (24, None)


def test_fingerprint_is_the_sha256_of_shape_frames_starts_and_labels(toy_videos):
    data = toy_videos([7, 9], frames=4)
    numbers = [[16, 3, 2, 4], [0, 7, 16], [0, 1]]
    shape, starts, labels = (b"".join(n.to_bytes(8, "little") for n in part) for part in numbers)
    assert data.fingerprint == hashlib.sha256(shape + data.frames.tobytes() + starts + labels).hexdigest()
    assert data.fingerprint != toy_videos([8, 8], frames=4).fingerprint


def test_short_videos_are_an_error_that_names_them(toy_videos):
    with pytest.raises(InputError) as error:
        toy_videos([7, 6, 9, 2])
    assert "a clip of 4 frames at stride 2 spans 7 frames" in str(error.value)
    assert "2 of 4 videos of toy are shorter: video 1 has 6; video 3 has 2" in str(error.value)
    assert "the shortest video has 2 frames" in str(error.value)


def test_no_videos_and_labels_outside_the_classes(toy_videos):
    with pytest.raises(InputError, match="toy holds no videos"):
        toy_videos([])
    data = toy_videos([7, 7])
    with pytest.raises(InputError, match=r"labels must lie in 0 \.\. 0"):
        VideoData(frames=data.frames, starts=data.starts, labels=data.labels, classes=("a",), name="x", clip_frames=4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": np.zeros((14, 3, 2, 4), np.float32)},
        {"frames": np.zeros((14, 2, 4), np.uint8)},
        {"frames": np.zeros((14, 2, 4, 3), np.uint8).transpose(0, 3, 1, 2)},
        {"starts": np.array([0, 7, 14], np.int32)},
        {"starts": np.array([0, 7, 13])},
        {"starts": np.array([1, 7, 14])},
        {"starts": np.array([0, 15, 14])},
        {"labels": np.zeros(3, np.int64)},
        {"clip_frames": 0},
        {"clip_stride": 0},
    ],
)
def test_arrays_of_another_kind_are_refused(toy_videos, wrong):
    data = toy_videos([7, 7])
    fields: dict[str, Any] = {
        "frames": data.frames, "starts": data.starts, "labels": data.labels, "classes": data.classes, "clip_frames": 4,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"must|clips have"):
        VideoData(**{**fields, **wrong}, name="toy")


def test_clips_are_the_source_s_frames_at_the_stride(toy_videos):
    data = toy_videos(LENGTHS)
    loader = Loader(data, batch_size=6, seed=3, clips=True)
    for step in range(20):
        batch = loader.batch(step)
        assert set(batch) == {"video", "label", "index"}
        assert batch["video"].dtype == torch.uint8
        assert batch["video"].shape == (6, 4, 3, 2, 4)
        np.testing.assert_array_equal(batch["index"], loader.indices(step))
        for clip, place, label, index in zip(
            batch["video"], places(batch), batch["label"], batch["index"], strict=True
        ):
            first = sum(LENGTHS[: int(index)]) + place
            assert 0 <= place <= LENGTHS[int(index)] - 7
            np.testing.assert_array_equal(clip, data.frames[[first, first + 2, first + 4, first + 6]])
            assert int(label) == int(index) % 3


def test_methods_of_images_get_one_frame_of_each_video(toy_videos):
    data = toy_videos(LENGTHS, labels=False)
    loader = Loader(data, batch_size=6, seed=3)
    for step in range(20):
        batch = loader.batch(step)
        assert {key: tuple(value.shape) for key, value in batch.items()} == {"image": (6, 3, 2, 4), "index": (6,)}
        for image, place, index in zip(batch["image"], places(batch), batch["index"], strict=True):
            np.testing.assert_array_equal(image, data.frames[sum(LENGTHS[: int(index)]) + place])


@pytest.mark.parametrize("clips", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 12])
def test_workers_share_the_same_global_batch(toy_videos, world_size, clips):
    data = toy_videos(LENGTHS)
    whole = Loader(data, batch_size=12, seed=9, clips=clips)
    for step in (0, 2, 5):
        parts = [
            Loader(data, batch_size=12, seed=9, rank=rank, world_size=world_size, clips=clips).batch(step)
            for rank in range(world_size)
        ]
        assert same({key: torch.cat([part[key] for part in parts]) for key in parts[0]}, whole.batch(step))


@pytest.mark.parametrize("clips", [True, False])
def test_any_step_in_any_order_gives_the_same_clips(toy_videos, clips):
    data = toy_videos(LENGTHS)
    forward = Loader(data, batch_size=4, seed=2, clips=clips)
    batches = [forward.batch(step) for step in range(9)]
    for step in (8, 0, 5, 3, 3):
        assert same(Loader(data, batch_size=4, seed=2, clips=clips).batch(step), batches[step])


def test_seeds_and_steps_have_places_of_their_own(toy_videos):
    data = toy_videos([1000] * 8)
    drawn = {
        tuple(places({"video": batch["video"].int()}))
        for seed in range(3)
        for step in range(4)
        for batch in [Loader(data, batch_size=8, seed=seed, clips=True).batch(step)]
    }
    assert len(drawn) == 12


@pytest.mark.parametrize("clips", [True, False])
def test_every_place_is_equally_likely(toy_videos, clips):
    """A chi-square test with about thirty draws for each place or more; the seed is fixed."""
    from scipy.stats import chisquare

    lengths = [7, 8, 12, 27]
    loader = Loader(toy_videos(lengths), batch_size=4, seed=1, clips=clips)
    seen: dict[int, Counter[int]] = {video: Counter() for video in range(4)}
    for step in range(800):
        batch = loader.batch(step)
        for video, place in zip(batch["index"].tolist(), places(batch), strict=True):
            seen[video][place] += 1
    for video, length in enumerate(lengths):
        possible = length - 7 + 1 if clips else length
        assert set(seen[video]) == set(range(possible))
        if possible > 1:
            assert chisquare([seen[video][place] for place in range(possible)]).pvalue > 1e-4


def test_evaluation_takes_the_middle_clip(toy_videos):
    data = toy_videos([7, 8, 9, 10, 11, 27])
    batches = list(sequential(data, batch_size=4))
    assert [tuple(batch["video"].shape) for batch in batches] == [(4, 4, 3, 2, 4), (2, 4, 3, 2, 4)]
    assert [place for batch in batches for place in places(batch)] == [0, 0, 1, 1, 2, 10]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(6))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(batches[0]["video"][2], data.frames[[15 + n for n in (1, 3, 5, 7)]])


@given(world_size=st.integers(1, 5), batch_size=st.integers(1, 5))
def test_evaluation_shares_the_videos(world_size, batch_size):
    frames = np.arange(30, dtype=np.uint8).reshape(-1, 1, 1, 1)
    data = VideoData(frames=frames, starts=np.arange(0, 31, 3), labels=None, classes=(), name="toy", clip_frames=2)
    found = [
        batch["video"]
        for rank in range(world_size)
        for batch in sequential(data, batch_size=batch_size, rank=rank, world_size=world_size)
    ]
    assert torch.cat(found).flatten().tolist() == [n for video in range(10) for n in (3 * video, 3 * video + 1)]


def test_a_fraction_keeps_whole_videos_of_each_class(toy_videos):
    data = toy_videos(LENGTHS)
    part = fraction_of(data, 0.5, seed=0)
    assert np.bincount(part.labels).tolist() == [2, 2, 2]
    videos = part.frames[part.starts[:-1], 0, 0, 0].tolist()
    assert videos == sorted(videos)
    assert [LENGTHS[video] for video in videos] == part.lengths.tolist()
    for number, video in enumerate(videos):
        own = slice(part.starts[number], part.starts[number + 1])
        np.testing.assert_array_equal(part.frames[own], data.frames[data.starts[video] : data.starts[video + 1]])
        assert part.labels[number] == data.labels[video]
    assert (part.name, part.clip_frames, part.clip_stride) == ("toy (0.5 of it)", 4, 2)
    small, large = (set(fraction_of(data, f, 1).frames[:, 0, 0, 0].tolist()) for f in (0.25, 0.75))
    assert small < large


def test_draws_for_other_rows_are_refused(toy_videos):
    from heliostat_algorithms.randomness import Random

    with pytest.raises(ValueError, match="3 rows, but there are 2"):
        toy_videos(LENGTHS).select(np.array([0, 1]), random=Random(0, 0, range(3)))


# In training


JOB = """
name: toy
algorithm:
  type: simclr
  backbone: {type: resnet18, stem: cifar, width: 4}
  augmentation: {jitter: {strength: 0.5}, blur: {probability: 0.0}}
data:
  train: {source: moving-digits, split: train, videos: 40, video_frames: 6, clip: {frames: 4}}
  test: {source: moving-digits, split: test, videos: 10, video_frames: 6, clip: {frames: 4}}
optimization:
  optimizer: {type: lars, learning_rate: 0.1}
  schedule: {type: constant}
  batch_size: 8
  steps: 2
resources: {runtime: local}
"""


def job(**test: Any) -> Job:
    parsed = parse(JOB, "toy.yaml")
    changed = parsed.data.model_copy(update={"test": parsed.data.test.model_copy(update=test)})
    return parsed.model_copy(update={"data": changed})


def test_a_method_of_images_learns_from_videos(tmp_path: Path):
    data = launch.load(job())
    loop = TrainingLoop(job(), data, SilentRuntime(torch.device("cpu")), RunFolder(str(tmp_path / "run")))
    assert loop.loader.batch(0)["image"].shape == (8, 1, 32, 32)
    assert loop.run().status == "finished"
    about = RunFolder(str(tmp_path / "run")).checkpoints().manifest(2)["data"]
    assert about == {"image_shape": [1, 32, 32], "classes": 10, "frames": 4}


def test_a_method_of_videos_is_given_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SimCLR, "video", True)
    loop = TrainingLoop(job(), launch.load(job()), SilentRuntime(torch.device("cpu")), RunFolder(str(tmp_path / "run")))
    assert loop.loader.batch(0)["video"].shape == (8, 4, 1, 32, 32)


def test_a_method_of_videos_refuses_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SimCLR, "video", True)
    with pytest.raises(InputError, match="simclr learns from clips, and digits/train holds images"):
        launch.load(parse(JOB, "toy.yaml", ["data.train={source: digits, split: train}", "data.test=null"]))


def test_train_and_test_must_have_clips_of_one_length():
    with pytest.raises(InputError, match="differ in their samples: clips of 4 frames and clips of 3 frames"):
        launch.load(job(clip=parse(JOB, "toy.yaml").data.test.clip.model_copy(update={"frames": 3})))
    with pytest.raises(InputError, match=r"differ in \(channels, height, width\): \(1, 32, 32\) and \(1, 64, 64\)"):
        launch.load(job(image_size=64))


def test_images_and_videos_do_not_go_together(toy_videos):
    images = ImageData(images=np.zeros((9, 3, 2, 4), np.uint8), labels=None, classes=(), name="image")
    (problem,) = check_alike(Datasets(images, toy_videos(LENGTHS)))
    assert str(problem) == "data.test: train and test differ in their samples: images and clips of 4 frames"
    assert check_alike(Datasets(toy_videos(LENGTHS), None)) == []


def test_train_fraction_of_videos():
    whole = parse(JOB, "toy.yaml", ["data.train_fraction=0.5"])
    data = launch.load(whole)
    assert 15 <= len(data.train) <= 25
    assert data.train.spec().frames == 4
