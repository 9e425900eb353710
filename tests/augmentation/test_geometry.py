from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch import Tensor

from heliostat_algorithms.augmentation import crop_boxes, resized_crop
from heliostat_algorithms.randomness import Random

Pictures = Callable[..., Tensor]
FULL = ((0.08, 1.0), (3 / 4, 4 / 3))


def pillow(image: Tensor, box: list[int], size: tuple[int, int]) -> np.ndarray:
    """One image (C, H, W), cropped and then resized channel by channel in Pillow's float mode."""
    top, left, height, width = box
    planes = []
    for plane in image.to(torch.float32).numpy():
        cut = Image.fromarray(plane, mode="F").crop((left, top, left + width, top + height))
        planes.append(np.asarray(cut.resize((size[1], size[0]), Image.Resampling.BILINEAR)))
    return np.stack(planes)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (17, 40, 12), (224, 224, 96), (30, 30, 64), (64, 48, 3), (9, 9, 1)]
)
def test_resized_crop_is_pillows(pictures: Pictures, height: int, width: int, size: int) -> None:
    images = pictures(12, 3, height, width, torch.float32)
    boxes = crop_boxes(Random(3, 0, range(12)), height, width, *FULL)
    boxes[0] = torch.tensor([0, 0, height, width])
    boxes[1] = torch.tensor([height - 1, width - 1, 1, 1])
    ours = resized_crop(images, boxes, torch.zeros(12, dtype=torch.bool), size)
    for image, box, view in zip(images, boxes.tolist(), ours, strict=True):
        np.testing.assert_allclose(view.numpy(), pillow(image, box, (size, size)), atol=2e-6)


def test_height_and_width_may_differ(pictures: Pictures) -> None:
    images = pictures(1, 1, 20, 30, torch.float32)
    ours = resized_crop(images, torch.tensor([[2, 3, 15, 20]]), torch.tensor([False]), (7, 25))
    np.testing.assert_allclose(ours[0].numpy(), pillow(images[0], [2, 3, 15, 20], (7, 25)), atol=2e-6)


def test_flip_mirrors_the_crop_bit_for_bit(pictures: Pictures) -> None:
    images = pictures(6, 3, 20, 24)
    boxes = crop_boxes(Random(0, 0, range(6)), 20, 24, *FULL)
    flip = torch.tensor([True, False, True, True, False, False])
    plain = resized_crop(images, boxes, torch.zeros(6, dtype=torch.bool), 10)
    ours = resized_crop(images, boxes, flip, 10)
    assert torch.equal(ours[flip], plain[flip].flip(3))
    assert torch.equal(ours[~flip], plain[~flip])


def test_pixels_outside_the_box_do_not_leak_in() -> None:
    images = torch.zeros(1, 1, 16, 16)
    images[:, :, 4:9, 6:12] = 0.5
    inside = torch.tensor([[4, 6, 5, 6]])
    for size in (2, 5, 32):
        view = resized_crop(images, inside, torch.tensor([False]), size)
        torch.testing.assert_close(view, torch.full_like(view, 0.5))


def test_the_whole_image_at_its_own_size_is_unchanged(pictures: Pictures) -> None:
    images = pictures(3, 3, 13, 19, torch.float32)
    boxes = torch.tensor([[0, 0, 13, 19]]).expand(3, 4)
    assert torch.equal(resized_crop(images, boxes, torch.zeros(3, dtype=torch.bool), (13, 19)), images)


def test_resized_crop_accepts_any_memory_layout(pictures: Pictures) -> None:
    images = pictures(4, 3, 12, 12)
    boxes = crop_boxes(Random(1, 0, range(4)), 12, 12, *FULL)
    flip = torch.tensor([True, False, True, False])
    expected = resized_crop(images, boxes, flip, 8)
    assert torch.equal(resized_crop(images.contiguous(memory_format=torch.channels_last), boxes, flip, 8), expected)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    area=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    aspect=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
    seed=st.integers(0, 1000),
)
def test_boxes_are_inside_the_image(height: int, width: int, area: list[float], aspect: list[float], seed: int) -> None:
    boxes = crop_boxes(Random(seed, 0, range(50)), height, width, (area[0], area[1]), (aspect[0], aspect[1]))
    top, left, box_height, box_width = boxes.unbind(1)
    assert boxes.dtype == torch.int64
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()


def test_area_and_aspect_follow_their_distributions() -> None:
    """Every candidate fits, so none is rejected, and the image is so large that rounding does not show."""
    side, count = 100_000, 20_000
    boxes = crop_boxes(Random(5, 0, range(count)), side, side, (0.05, 0.5), (3 / 4, 4 / 3)).double()
    area = boxes[:, 2] * boxes[:, 3] / side**2
    log_aspect = (boxes[:, 3] / boxes[:, 2]).log()
    assert stats.kstest(area.numpy(), stats.uniform(0.05, 0.45).cdf).pvalue > 1e-3
    low = math.log(3 / 4)
    assert stats.kstest(log_aspect.numpy(), stats.uniform(low, -2 * low).cdf).pvalue > 1e-3
    for place, length in ((boxes[:, 0], boxes[:, 2]), (boxes[:, 1], boxes[:, 3])):
        assert stats.kstest((place / (side - length)).numpy(), "uniform").pvalue > 1e-3


def test_boxes_follow_the_sequential_procedure() -> None:
    """Against the textbook loop with a generator of its own, rejections included."""
    rng = np.random.default_rng(0)

    def loop(height: int, width: int) -> tuple[int, int]:
        for _ in range(10):
            target = height * width * rng.uniform(0.08, 1)
            aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                return h, w
        return height, width

    count = 8000
    reference = np.array([loop(500, 600) for _ in range(count)])
    ours = crop_boxes(Random(6, 0, range(count)), 500, 600, *FULL)[:, 2:].numpy()
    for measure in (lambda s: s[:, 0], lambda s: s[:, 1], lambda s: s[:, 0] * s[:, 1], lambda s: s[:, 1] / s[:, 0]):
        assert stats.ks_2samp(measure(reference), measure(ours)).pvalue > 1e-3


def test_every_position_is_drawn_equally_often() -> None:
    boxes = crop_boxes(Random(7, 0, range(20_000)), 8, 8, (0.25, 0.25), (1.0, 1.0))
    assert (boxes[:, 2:] == 4).all()
    counts = torch.bincount(boxes[:, 0] * 5 + boxes[:, 1], minlength=25)
    assert len(counts) == 25
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 100, [0, 43, 10, 13]), (100, 10, [43, 0, 13, 10]), (64, 64, [0, 0, 64, 64])],
)
def test_without_a_valid_candidate_the_box_is_central(height: int, width: int, box: list[int]) -> None:
    """The whole area with an aspect ratio that the image has not got, or one that needs more than the image."""
    aspect = (3 / 4, 4 / 3) if height != width else (1.2, 1.3)
    if height == width:
        box = [5, 0, 53, 64]  # 64 / 1.2 = 53.3 rows: the ratio 1 is below 1.2
    boxes = crop_boxes(Random(0, 0, range(20)), height, width, (1.0, 1.0), aspect)
    assert boxes.tolist() == [box] * 20


def test_boxes_do_not_depend_on_who_draws_them() -> None:
    whole = crop_boxes(Random(9, 4, range(16)), 32, 32, *FULL)
    parts = [crop_boxes(Random(9, 4, rows), 32, 32, *FULL) for rows in (range(5), range(5, 16))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(crop_boxes(Random(9, 5, range(16)), 32, 32, *FULL), whole)
