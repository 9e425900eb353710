from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Step
from heliostat_algorithms.evaluation import concatenate, extract, pixels
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
