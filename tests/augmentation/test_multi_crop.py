from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from heliostat_algorithms.augmentation import ColorJitter, ViewAugmentation
from heliostat_algorithms.augmentation.multi_crop import MultiCrop
from heliostat_algorithms.randomness import Random

Pictures = Callable[..., Tensor]


def small(**options: Any) -> MultiCrop:
    crops = MultiCrop()
    return MultiCrop(
        first_global=replace(crops.first_global, size=12),
        second_global=replace(crops.second_global, size=12),
        local=replace(crops.local, size=6),
        **{"local_crops": 3, **options},
    )


def test_the_defaults_are_dinos_for_imagenet() -> None:
    crops = MultiCrop()
    assert crops.local_crops == 8
    first, second, local = crops.first_global, crops.second_global, crops.local
    assert [view.size for view in (first, second, local)] == [224, 224, 96]
    assert [view.crop_area for view in (first, second, local)] == [(0.4, 1.0), (0.4, 1.0), (0.05, 0.4)]
    assert [view.blur.probability for view in (first, second, local)] == [1.0, 0.1, 0.5]
    assert [view.solarize for view in (first, second, local)] == [0.0, 0.2, 0.0]
    for view in (first, second, local):
        assert view.jitter == ColorJitter(
            probability=0.8, strength=1.0, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1
        )
        assert (view.crop_aspect, view.flip, view.greyscale) == ((3 / 4, 4 / 3), 0.5, 0.2)
        assert view.blur.sigma == (0.1, 2.0)
        assert view.solarize_threshold == 0.5
        # The blur reaches at least 4 of the largest standard deviations, like Pillow's.
        assert view.size is not None
        assert view.blur.kernel_size(view.size) // 2 >= 4 * 2.0


def test_crops_are_ordered_by_crop_and_drawn_from_scopes_of_their_own(pictures: Pictures) -> None:
    images, random, crops = pictures(5, 3, 20, 16), Random(3, 7, range(5)), small()
    large, local = crops(images, random)
    assert local is not None
    assert large.shape == (10, 3, 12, 12)
    assert local.shape == (15, 3, 6, 6)
    assert torch.equal(large[:5], crops.first_global(images, random.within("global0")))
    assert torch.equal(large[5:], crops.second_global(images, random.within("global1")))
    for number in range(3):
        expected = crops.local(images, random.within(f"local{number}"))
        assert torch.equal(local[5 * number : 5 * number + 5], expected)
    flat = local.flatten(1)
    assert all(not torch.equal(flat[i], flat[j]) for i in range(15) for j in range(i))


def test_workers_make_the_crops_of_their_own_rows(pictures: Pictures) -> None:
    images, crops = pictures(6, 3, 20, 20), small()
    large, local = crops(images, Random(1, 2, range(6)))
    assert local is not None
    for rows in (range(2), range(2, 6)):
        part = crops(images[rows.start : rows.stop], Random(1, 2, rows))
        for mine, whole, count in ((part[0], large, 2), (part[1], local, 3)):
            assert mine is not None
            expected = whole.view(count, 6, *whole.shape[1:])[:, rows.start : rows.stop].flatten(0, 1)
            torch.testing.assert_close(mine, expected, atol=1e-13, rtol=0)


def test_without_local_crops_there_are_none(pictures: Pictures) -> None:
    images, random = pictures(4, 1, 16, 16), Random(0, 0, range(4))
    large, local = small(local_crops=0)(images, random)
    assert local is None
    assert torch.equal(large, small()(images, random)[0])


def test_views_without_a_size_keep_that_of_the_image() -> None:
    images = torch.randint(256, (2, 1, 8, 10), dtype=torch.uint8)
    crops = MultiCrop(
        first_global=ViewAugmentation(), second_global=ViewAugmentation(), local=ViewAugmentation(size=4), local_crops=2
    )
    large, local = crops(images, Random(0, 0, range(2)))
    assert local is not None
    assert (large.shape, local.shape) == ((4, 1, 8, 10), (4, 1, 4, 4))
    assert large.dtype == local.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"local_crops": -1}, "local_crops is -1"),
        ({"first_global": ViewAugmentation(size=32)}, "sizes 32 and 224"),
        ({"second_global": ViewAugmentation()}, "sizes 224 and None"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MultiCrop(**change)
