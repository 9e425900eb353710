from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heliostat_algorithms.augmentation import (
    ColorJitter,
    GaussianBlur,
    ViewAugmentation,
    blocks,
    color_jitter,
    crop_boxes,
    gaussian_blur,
    resized_crop,
    solarize,
    to_greyscale,
)
from heliostat_algorithms.randomness import Random

Pictures = Callable[..., Tensor]

NOTHING = ViewAugmentation(
    crop_area=(1.0, 1.0),
    crop_aspect=(1.0, 1.0),
    flip=0.0,
    jitter=ColorJitter(probability=0.0),
    greyscale=0.0,
    blur=GaussianBlur(probability=0.0),
)
EVERYTHING = ViewAugmentation(
    size=12,
    flip=1.0,
    jitter=ColorJitter(probability=1.0),
    greyscale=1.0,
    blur=GaussianBlur(probability=1.0),
    solarize=1.0,
)


def test_the_defaults_are_simclrs() -> None:
    view = ViewAugmentation()
    assert (view.crop_area, view.crop_aspect, view.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert view.jitter == ColorJitter(
        probability=0.8, strength=1.0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2
    )
    assert (view.greyscale, view.solarize) == (0.2, 0.0)
    assert view.blur == GaussianBlur(probability=0.5, sigma=(0.1, 2.0), kernel=0.1)


def test_a_view_is_its_operations_one_after_another(pictures: Pictures) -> None:
    """The grouped and cut computation against the plain functions, sample by sample, with the same draws."""
    images = pictures(64, 3, 20, 24)
    augment = replace(ViewAugmentation(), size=16, solarize=0.4)
    random = Random(3, 7, range(64))
    views = augment(images, random)
    boxes = crop_boxes(random, 20, 24, augment.crop_area, augment.crop_aspect)
    flip = random.bernoulli("flip", 0.5)
    jittered, factors, order = augment.jitter.draw(random)
    grey = random.bernoulli("greyscale", 0.2)
    blurred, sigma = augment.blur.draw(random)
    solarized = random.bernoulli("solarize", 0.4)
    combinations = set()
    for row in range(64):
        one = slice(row, row + 1)
        expected = resized_crop(images[one], boxes[one], flip[one], 16)
        if jittered[row]:
            expected = color_jitter(expected, factors[one], order[one])
        if grey[row]:
            expected = to_greyscale(expected)
        if blurred[row]:
            expected = gaussian_blur(expected, sigma[one], 3)
        if solarized[row]:
            expected = solarize(expected, 0.5)
        torch.testing.assert_close(views[one], expected, atol=1e-12, rtol=0)
        combinations.add((bool(jittered[row]), bool(grey[row]), bool(blurred[row]), bool(solarized[row])))
    assert len(combinations) >= 10


def test_no_result_depends_on_the_cut(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(40, 3, 16, 16, torch.float32)
    augment = replace(ViewAugmentation(), solarize=0.3)
    whole = augment(images, Random(0, 0, range(40)))
    for elements in (1, 2000):
        monkeypatch.setattr(blocks, "CPU_ELEMENTS", elements)
        torch.testing.assert_close(augment(images, Random(0, 0, range(40))), whole, atol=1e-6, rtol=0)


def test_blocks_cover_everything_once_and_respect_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "CPU_ELEMENTS", 30)
    groups = torch.tensor([-1] * 7 + [0] * 3 + [3] * 1)
    pieces = list(blocks.blocks(groups, 10, torch.device("cpu")))
    assert [row for piece in pieces for row in range(piece.start, piece.stop)] == list(range(11))
    assert all(len(set(groups[piece].tolist())) == 1 and piece.stop - piece.start <= 3 for piece in pieces)
    assert list(blocks.blocks(torch.tensor([], dtype=torch.int64), 10, torch.device("cpu"))) == []


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    height=st.integers(4, 40),
    width=st.integers(4, 40),
    size=st.none() | st.integers(4, 40),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.float64]),
)
def test_shape_dtype_range_and_determinism(
    count: int, channels: int, height: int, width: int, size: int | None, seed: int, dtype: torch.dtype
) -> None:
    images = torch.randint(0, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(seed))
    images = images.to(torch.uint8) if dtype == torch.uint8 else (images / 255).to(dtype)
    before = images.clone()
    augment = ViewAugmentation(size=size, solarize=0.2)
    views = augment(images, Random(seed, 1, range(5, 5 + count)))
    assert views.shape == (count, channels, size or height, size or width)
    assert views.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert views.min() >= 0
    assert views.max() <= 1
    assert torch.equal(images, before)
    assert torch.equal(augment(images, Random(seed, 1, range(5, 5 + count))), views)


def test_workers_make_their_own_rows_of_the_global_batch(pictures: Pictures) -> None:
    images = pictures(12, 3, 18, 18)
    augment = ViewAugmentation(solarize=0.3)
    whole = augment(images, Random(1, 2, range(12)))
    parts = [
        augment(images[rows.start : rows.stop], Random(1, 2, rows)) for rows in (range(4), range(4, 9), range(9, 12))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-13, rtol=0)


def test_views_differ_by_scope_step_seed_and_row(pictures: Pictures) -> None:
    images = pictures(1, 3, 18, 18).expand(4, 3, 18, 18)
    augment = ViewAugmentation()
    random = Random(0, 0, range(4))
    views = [augment(images, r) for r in (random, random.within("a"), random.within("b"), Random(0, 1, range(4)))]
    views.append(augment(images, Random(1, 0, range(4))))
    flat = torch.cat(views)
    assert all(not torch.equal(flat[i], flat[j]) for i in range(len(flat)) for j in range(i))


def test_nothing_asked_nothing_changed(pictures: Pictures) -> None:
    images = pictures(50, 3, 15, 15, torch.float32)
    views = NOTHING(images, Random(0, 0, range(50)))
    assert torch.equal(views, images)
    assert views.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("name", ["flip", "jitter", "greyscale", "blur", "solarize"])
def test_a_probability_of_one_always_applies(name: str, pictures: Pictures) -> None:
    value = {"jitter": ColorJitter(probability=1.0), "blur": GaussianBlur(probability=1.0, sigma=(1.0, 2.0))}.get(
        name, 1.0
    )
    images = pictures(100, 3, 15, 15, torch.float32)
    views = replace(NOTHING, **{name: value})(images, Random(0, 0, range(100)))  # type: ignore[arg-type]
    assert (views != images).flatten(1).any(1).all()


@pytest.mark.parametrize(("name", "probability"), [("flip", 0.5), ("greyscale", 0.2), ("solarize", 0.3)])
def test_probabilities_are_shares_of_the_samples(name: str, probability: float, pictures: Pictures) -> None:
    images = pictures(1, 3, 4, 4, torch.float32).expand(4000, 3, 4, 4)
    views = replace(NOTHING, **{name: probability})(images, Random(0, 0, range(4000)))  # type: ignore[arg-type]
    share = (views != images).flatten(1).any(1).double().mean()
    assert abs(float(share) - probability) < 0.03


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_and_floats_agree(channels: int, pictures: Pictures) -> None:
    stored = (pictures(30, channels, 20, 20) * 255).to(torch.uint8)
    random = Random(4, 0, range(30))
    augment = ViewAugmentation(solarize=0.2)
    assert torch.equal(augment(stored, random), augment(stored.float() / 255, random))


def test_one_channel_has_no_greyscale_but_all_the_rest(pictures: Pictures) -> None:
    images = pictures(8, 1, 20, 20)
    random = Random(0, 0, range(8))
    assert torch.equal(EVERYTHING(images, random), replace(EVERYTHING, greyscale=0.0)(images, random))


def test_an_empty_batch_gives_an_empty_batch() -> None:
    assert EVERYTHING(torch.empty(0, 3, 20, 20), Random(0, 0, range(0))).shape == (0, 3, 12, 12)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 2, 8, 8), "1 or 3"),
        (torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "int64"),
        (torch.zeros(3, 3, 8, 8), "3 images and draws for 2 rows"),
    ],
)
def test_unsuitable_images_are_refused(images: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ViewAugmentation()(images, Random(0, 0, range(2)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 0}, "size"),
        ({"crop_area": (0.0, 1.0)}, "crop_area"),
        ({"crop_area": (0.5, 0.4)}, "crop_area"),
        ({"crop_area": (0.5, 1.2)}, "crop_area"),
        ({"crop_aspect": (2.0, 1.0)}, "crop_aspect"),
        ({"crop_aspect": (-1.0, 1.0)}, "crop_aspect"),
        ({"flip": 1.5}, "flip"),
        ({"greyscale": -0.1}, "greyscale"),
        ({"solarize": float("nan")}, "solarize"),
        ({"solarize_threshold": 2.0}, "solarize_threshold"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ViewAugmentation(**change)  # type: ignore[arg-type]
