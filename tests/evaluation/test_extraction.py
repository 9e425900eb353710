from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Step
from heliostat_algorithms.evaluation import concatenate, extract, pixels
from heliostat_algorithms.evaluation.extraction import as_trained, sample_features, sample_tokens
from heliostat_algorithms.randomness import Random


class Toy(Algorithm):
    """Batch normalisation shows the mode; the noisy views show the rows."""

    def __init__(self) -> None:
        super().__init__(None, DataSpec(image_shape=(1, 2, 2), classes=3))
        self.norm = nn.BatchNorm1d(4)
        self.teacher = nn.BatchNorm1d(4)
        self.teacher.eval()
        self.linear = nn.Linear(4, 5)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        raise AssertionError("extraction does not train")

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        raise AssertionError("extraction does not train")

    def features(self, images: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.linear(self.norm(images.flatten(1).float() / 255))  # type: ignore[no-any-return]

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        assert not self.training
        values = batch["image"].flatten(1).float() / 255
        views = (values + random.normal(name, 4) for name in ("first", "second"))
        first, second = (self.linear(self.norm(view)) for view in views)
        return first, second


class Failing(Toy):
    def features(self, images: Tensor) -> Tensor:
        raise RuntimeError("out of memory")


def batches(sizes: tuple[int, ...], start: int = 0) -> Iterator[dict[str, Tensor]]:
    """Rows of one fixed set of 20 images, cut as the sizes say."""
    images = torch.randint(256, (20, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for size in sizes:
        yield {"image": images[start : start + size], "label": torch.arange(start, start + size) % 3}
        start += size


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def test_features_do_not_depend_on_the_batches(toy: Toy) -> None:
    whole, cut = (extract(toy, batches(sizes), classes=3) for sizes in ((20,), (7, 7, 6)))
    assert whole.values.shape == (20, 5)
    torch.testing.assert_close(cut.values, whole.values)
    assert whole.labels is not None
    assert whole.labels.tolist() == [row % 3 for row in range(20)]
    assert whole.classes == 3
    assert whole.pairs is None
    image = next(batches((20,)))["image"]
    expected = toy.linear(image.flatten(1).float() / 255 / (1 + 1e-5) ** 0.5)  # running statistics 0 and 1
    torch.testing.assert_close(whole.values, expected.detach())


def test_modes_and_statistics_are_as_before(toy: Toy) -> None:
    toy.train()
    toy.teacher.eval()
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    extract(toy, batches((20,)), pair_seed=0)
    assert toy.training
    assert toy.norm.training
    assert not toy.teacher.training
    assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items())


def test_modes_are_as_before_when_the_network_fails() -> None:
    failing = Failing()
    with pytest.raises(RuntimeError, match="out of memory"):
        extract(failing, batches((20,)))
    assert failing.training


def test_features_are_float32_inside_autocast(toy: Toy) -> None:
    expected = extract(toy, batches((20,)), pair_seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extract(toy, batches((20,)), pair_seed=0)
    assert found.values.dtype == torch.float32
    assert torch.equal(found.values, expected.values)


def test_two_workers_find_what_one_does(toy: Toy) -> None:
    whole = extract(toy, batches((8, 8, 4)), pair_seed=3)
    parts = [
        extract(toy, batches((12,)), pair_seed=3),
        extract(toy, batches((8,), start=12), pair_seed=3, first_row=12),
    ]
    joined = concatenate(parts)
    torch.testing.assert_close(joined.values, whole.values)
    assert whole.pairs is not None
    assert joined.pairs is not None
    for ours, expected in zip(joined.pairs, whole.pairs, strict=True):
        torch.testing.assert_close(ours, expected)
    assert not torch.allclose(whole.pairs[0], whole.pairs[1])
    other = extract(toy, batches((20,)), pair_seed=4)
    assert other.pairs is not None
    assert not torch.allclose(other.pairs[0], whole.pairs[0])


def test_labels_are_left_out_where_there_are_no_classes(toy: Toy) -> None:
    found = extract(toy, batches((20,)))
    assert found.labels is None
    assert found.classes is None


def test_methods_without_views_give_no_pairs(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "view_pair", lambda batch, random: None)
    assert extract(toy, batches((20,)), pair_seed=0).pairs is None


def test_diverged_features_and_empty_data_are_errors(toy: Toy) -> None:
    with pytest.raises(ValueError, match="no batch"):
        extract(toy, [])
    with torch.no_grad():
        toy.linear.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite in 20 of 20"):
        extract(toy, batches((20,)))


def test_pixels_are_the_images_in_the_unit_interval() -> None:
    image: Any = torch.tensor([0, 51, 255, 102], dtype=torch.uint8).view(1, 1, 2, 2)
    found = pixels([{"image": image, "label": torch.tensor([2])}], classes=3)
    torch.testing.assert_close(found.values, torch.tensor([[0.0, 0.2, 1.0, 0.4]]))
    assert found.labels is not None
    assert found.labels.tolist() == [2]
    with pytest.raises(ValueError, match="uint8"):
        pixels([{"image": image.float()}])


class Frames(Toy):
    """Tokens and class scores as well; takes images."""

    def token_features(self, images: Tensor) -> Tensor:
        h = self.features(images)
        return torch.stack([h, 2 * h, 3 * h], dim=1)

    def class_scores(self, images: Tensor) -> Tensor:
        return self.features(images)[:, :3]


class Clips(Toy):
    """Takes whole clips: the difference of the last and the first frame."""

    video = True

    def features(self, images: Tensor) -> Tensor:
        assert images.ndim == 5
        return super().features(images[:, -1]) - super().features(images[:, 0])

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        assert "image" not in batch
        return self.features(batch["video"]), self.features(batch["video"])


def clips() -> dict[str, Tensor]:
    """Five clips of four frames."""
    frames = next(batches((20,)))["image"]
    return {"video": frames.view(5, 4, 1, 2, 2), "label": torch.arange(5) % 3, "index": torch.arange(5)}


def test_a_clip_s_features_are_the_mean_of_its_frames_for_those_that_take_images(toy: Toy) -> None:
    algorithm = Frames()
    algorithm.load_state_dict(toy.state_dict())
    found = extract(algorithm, [clips()], classes=3)
    frames = extract(algorithm, batches((20,)), classes=3)
    torch.testing.assert_close(found.values, torch.stack([frames.values[4 * i : 4 * i + 4].mean(0) for i in range(5)]))
    assert found.scores is not None
    torch.testing.assert_close(found.scores, found.values[:, :3])
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 0, 1]
    doubled = extract(algorithm, [clips()], classes=3, network=lambda images: 2 * algorithm.features(images))
    torch.testing.assert_close(doubled.values, 2 * found.values)
    algorithm.eval()
    with torch.no_grad():
        tokens = sample_tokens(algorithm, clips())
        torch.testing.assert_close(sample_features(algorithm, clips()), found.values)
    assert tokens.shape == (5, 12, 5)
    for clip, frame in ((0, 0), (3, 2)):
        h = frames.values[4 * clip + frame]
        torch.testing.assert_close(tokens[clip, 3 * frame : 3 * frame + 3], torch.stack([h, 2 * h, 3 * h]))


def test_an_algorithm_for_video_is_given_whole_clips(toy: Toy) -> None:
    algorithm = Clips()
    algorithm.load_state_dict(toy.state_dict())
    frames = extract(toy, batches((20,))).values.view(5, 4, 5)
    found = extract(algorithm, [clips()], pair_seed=0)
    torch.testing.assert_close(found.values, frames[:, 3] - frames[:, 0])
    assert found.pairs is not None
    torch.testing.assert_close(found.pairs[0], found.values)
    batch = clips()
    assert as_trained(algorithm, batch) is batch


def test_views_of_a_clip_are_those_of_its_middle_frame(toy: Toy) -> None:
    shown = as_trained(toy, clips())
    assert set(shown) == {"image", "label", "index"}
    assert torch.equal(shown["image"], clips()["video"][:, 2])
    found, expected = (extract(toy, [batch], pair_seed=3) for batch in (clips(), shown))
    assert found.pairs is not None
    assert expected.pairs is not None
    assert torch.equal(found.pairs[1], expected.pairs[1])


def test_pixels_of_a_clip_are_all_its_frames() -> None:
    found = pixels([clips()], classes=3)
    assert found.values.shape == (5, 16)
    torch.testing.assert_close(found.values[2], clips()["video"][2].flatten() / 255)
