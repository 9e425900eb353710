"""Pictures at the end of a run, and what they are drawn from."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heliostat.config.job import Job
from heliostat.data.images import ImageData
from heliostat.data.samples import Samples
from heliostat.data.videos import VideoData
from heliostat.tracking import figures
from heliostat.training import pictures
from heliostat.training.evaluation import Evaluation
from heliostat.training.pictures import keep_pictures
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Panels, Step
from heliostat_algorithms.backbones import ViTTiny
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.randomness import Random

CPU = torch.device("cpu")


class Painter(Algorithm):
    """Shows what it was given, beside a draw of its own."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(None, DataSpec(image_shape=shape, classes=2))
        self.backbone = ViTTiny(patch_size=4, width=8, depth=1, heads=2).build(shape[0], shape[1:])

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        raise AssertionError("pictures are of what was learned")

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        raise AssertionError("pictures are of what was learned")

    def encoder(self) -> Encoder:
        return self.backbone

    def whole(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def pictures(self, batch: Batch, random: Random) -> Mapping[str, Panels]:
        assert not self.training
        assert not torch.is_grad_enabled()
        shown = batch["video"][:, 0] if self.video else batch["image"]
        noise = random.uniform("noise", *shown.shape[1:])
        columns = torch.stack([shown / 255, noise, 2 * noise - 0.5], dim=1)
        return {"noise": Panels(("image", "noise", "too much of it"), columns)}


class ClipPainter(Painter):
    video = True


def images(count: int, channels: int = 1, seed: int = 0) -> ImageData:
    random = np.random.default_rng(seed)
    drawn = random.integers(0, 256, (count, channels, 8, 12), dtype=np.uint8)
    return ImageData(images=drawn, labels=np.arange(count) % 2, classes=("a", "b"), name="noise")


def videos(count: int) -> VideoData:
    frames = np.random.default_rng(0).integers(0, 256, (7 * count, 3, 8, 12), dtype=np.uint8)
    return VideoData(
        frames=frames,
        starts=np.arange(count + 1, dtype=np.int64) * 7,
        labels=np.arange(count) % 2,
        classes=("a", "b"),
        name="noise",
        clip_frames=4,
    )


def size(folder: RunFolder, name: str) -> tuple[int, int]:
    """(width, height) of a stored PNG."""
    width, height = struct.unpack(">II", folder.storage.read(f"figures/{name}")[16:24])
    return width, height


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """What is drawn, by the function that draws it; it is written, too."""
    seen: dict[str, tuple[Any, ...]] = {}
    for name in ("draw_panels", "draw_attention", "draw_neighbours"):
        function = getattr(figures, name)

        def spy(*arguments: Any, _name: str = name, _function: Callable[..., None] = function) -> None:
            seen[_name] = arguments
            _function(*arguments)

        monkeypatch.setattr(pictures, name, spy)
    return seen


@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_method_shows_of_the_first_samples(
    tmp_path: Path, drawn: dict[str, tuple[Any, ...]], channels: int
) -> None:
    data, folder = images(20, channels), RunFolder(str(tmp_path))
    algorithm = Painter((channels, 8, 12)).train()
    keep_pictures(algorithm, data, folder, CPU)
    assert sorted(folder.figures()) == ["attention.png", "noise.png"]
    titles, panels, _ = drawn["draw_panels"]
    assert titles == ("image", "noise", "too much of it")
    assert panels.dtype == np.uint8
    np.testing.assert_array_equal(panels[:, 0], data.images[:8])
    assert (panels[:, 2] == 0).any()  # cut at both ends, not wrapped around
    assert (panels[:, 2] == 255).any()
    np.testing.assert_array_equal(drawn["draw_attention"][0], data.images[:8])
    width, height = size(folder, "noise.png")
    assert width > 400
    assert height > 8 * 8
    assert algorithm.training
    assert algorithm.backbone.training
    again = drawn["draw_panels"][1]
    keep_pictures(algorithm, data, folder, CPU)
    np.testing.assert_array_equal(drawn["draw_panels"][1], again)


def test_fewer_samples_than_a_picture_has_rows(tmp_path: Path, drawn: dict[str, tuple[Any, ...]]) -> None:
    keep_pictures(Painter((1, 8, 12)), images(3), RunFolder(str(tmp_path)), CPU)
    assert len(drawn["draw_panels"][1]) == 3


def test_of_videos_the_middle_frame_is_shown_to_those_that_take_images(
    tmp_path: Path, drawn: dict[str, tuple[Any, ...]]
) -> None:
    data, folder = videos(9), RunFolder(str(tmp_path))
    keep_pictures(Painter((3, 8, 12)), data, folder, CPU)
    clip = data.frames.reshape(9, 7, 3, 8, 12)[:8, 1:5]  # in the middle of seven frames
    np.testing.assert_array_equal(drawn["draw_panels"][1][:, 0], clip[:, 2])
    del drawn["draw_attention"]
    keep_pictures(ClipPainter((3, 8, 12)), data, folder, CPU)
    np.testing.assert_array_equal(drawn["draw_panels"][1][:, 0], clip[:, 0])
    assert "draw_attention" not in drawn


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_the_nearest_training_samples_are_drawn_after_an_evaluation_that_retrieves(
    tiny: Callable[..., Job], tmp_path: Path, drawn: dict[str, tuple[Any, ...]], kind: str
) -> None:
    train: Samples = images(40, 3) if kind == "images" else videos(40)
    test: Samples = images(11, 3, seed=1) if kind == "images" else videos(11)
    job = tiny("evaluation=[{type: retrieval, k: [1, 3]}]")
    evaluation = Evaluation(job, train, test, SilentRuntime(CPU))
    assert evaluation.retrieved is None
    algorithm = Painter((3, 8, 12))
    found = evaluation.run(algorithm, 1, 1, True, lambda activity: None)
    names = ["recall_1", "recall_3", "precision_3", "map"]
    assert set(found) == {f"eval/retrieval_{name}" for name in names}
    folder = RunFolder(str(tmp_path))
    keep_pictures(algorithm, test, folder, CPU, evaluation.retrieved)
    assert "neighbours.png" in folder.figures()
    queries, nearest, right, _ = drawn["draw_neighbours"]
    assert (queries.shape, nearest.shape, right.shape) == ((8, 3, 8, 12), (8, 5, 3, 8, 12), (8, 5))
    width, height = size(folder, "neighbours.png")
    assert width > 800
    assert height > 800
    if kind == "images":
        for query, found_images, marks in zip(queries, nearest, right, strict=True):
            label = test.labels[np.flatnonzero((test.pictures == query).all(axis=(1, 2, 3)))[0]]  # type: ignore[index]
            for image, same in zip(found_images, marks, strict=True):
                row = np.flatnonzero((train.pictures == image).all(axis=(1, 2, 3)))[0]
                assert (train.labels[row] == label) == same  # type: ignore[index]
