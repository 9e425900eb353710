from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.augmentation import blocks, crop_boxes, resized_crop
from heliostat_algorithms.augmentation.clips import ClipAugmentation
from heliostat_algorithms.randomness import Random

B, T = 6, 4


def clips(count: int = B, frames: int = T, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, frames, channels, 20, 24, generator=generator, dtype=torch.float64)


def test_the_defaults_are_vjepas() -> None:
    augment = ClipAugmentation()
    assert (augment.size, augment.crop_area, augment.crop_aspect) == (224, (0.3, 1.0), (0.75, 1.35))
    assert augment.flip == 0.5
    assert augment.output_size((256, 300)) == (224, 224)
    assert replace(augment, size=None).output_size((20, 24)) == (20, 24)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, None])
def test_a_view_is_the_same_crop_of_each_frame(channels: int, size: int | None) -> None:
    augment, random, stored = ClipAugmentation(size=size), Random(3, 7, range(B)), clips(channels=channels)
    views = augment(stored, random)
    height, width = augment.output_size((20, 24))
    assert views.shape == (B, channels, T, height, width)
    assert views.dtype == torch.float64
    boxes = crop_boxes(random, 20, 24, (0.3, 1.0), (0.75, 1.35))
    flip = random.bernoulli("flip", 0.5)
    assert 0 < int(flip.sum()) < B
    for row in range(B):
        one = slice(row, row + 1)
        for frame in range(T):
            expected = resized_crop(stored[one, frame], boxes[one], flip[one], (height, width))
            torch.testing.assert_close(views[one, :, frame], expected, atol=1e-12, rtol=0)


def test_crops_keep_to_their_range() -> None:
    boxes = crop_boxes(Random(0, 0, range(500)), 200, 200, (0.3, 1.0), (0.75, 1.35)).double()
    area, aspect = boxes[:, 2] * boxes[:, 3] / 40000, boxes[:, 3] / boxes[:, 2]
    assert area.min() > 0.29
    assert 0.29 < area.quantile(0.02) < 0.35
    assert aspect.min() > 0.74
    assert aspect.max() < 1.36


def test_a_still_clip_stays_still() -> None:
    views = ClipAugmentation(size=9)(clips(frames=1).expand(-1, T, -1, -1, -1), Random(1, 2, range(B)))
    assert torch.equal(views, views[:, :, :1].expand(-1, -1, T, -1, -1))


def test_bytes_become_shares_of_one() -> None:
    stored = (clips() * 255).round().to(torch.uint8)
    augment, random = ClipAugmentation(size=10), Random(0, 1, range(B))
    views = augment(stored, random)
    assert views.dtype == torch.float32
    torch.testing.assert_close(views.double(), augment(stored.double() / 255, random), atol=1e-5, rtol=0)
    assert 0 <= views.min() < views.max() <= 1


def test_rows_are_drawn_from_the_step_and_their_place_alone() -> None:
    augment, stored = ClipAugmentation(size=10), clips(8)
    whole = augment(stored, Random(7, 3, range(8)))
    for rows in (range(4), range(4, 8), range(5, 6)):
        part = augment(stored[rows.start : rows.stop], Random(7, 3, rows))
        torch.testing.assert_close(part, whole[rows.start : rows.stop], atol=1e-12, rtol=0)
    assert not torch.equal(augment(stored, Random(7, 4, range(8))), whole)
    same = augment(stored[:1].expand(8, -1, -1, -1, -1), Random(7, 3, range(8)))
    assert len(same.flatten(1).unique(dim=0)) == 8


def test_the_cut_into_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    augment, stored = ClipAugmentation(size=10), clips()
    whole = augment(stored, Random(0, 0, range(B)))
    monkeypatch.setattr(blocks, "CPU_ELEMENTS", 1)
    torch.testing.assert_close(augment(stored, Random(0, 0, range(B))), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flips_are_as_frequent_as_asked(flip: float) -> None:
    augment = ClipAugmentation(size=None, crop_area=(1.0, 1.0), crop_aspect=(1.2, 1.2), flip=flip)
    stored = clips()
    expected = stored.flip(4) if flip else stored
    torch.testing.assert_close(augment(stored, Random(0, 0, range(B))).transpose(1, 2), expected, atol=1e-12, rtol=0)


def test_whole_clips_are_resized_frame_by_frame_without_chance() -> None:
    stored = (clips() * 255).round().to(torch.uint8)
    found = ClipAugmentation(size=12).whole(stored)
    assert found.shape == (B, 3, T, 12, 12)
    for frame in range(T):
        expected = F.interpolate(stored[:, frame] / 255, (12, 12), mode="bilinear", antialias=True)
        torch.testing.assert_close(found[:, :, frame], expected)
    same = ClipAugmentation(size=None).whole(stored)
    assert torch.equal(same, (stored / 255).transpose(1, 2))


def test_clips_of_another_shape_or_kind_are_refused() -> None:
    augment = ClipAugmentation(size=8)
    with pytest.raises(ValueError, match=r"clips are \(B, T, C, H, W\), not \(6, 3, 20, 24\)"):
        augment(clips()[:, 0], Random(0, 0, range(B)))
    with pytest.raises(ValueError, match=r"clips are \(B, T, C, H, W\)"):
        augment.whole(clips()[0])
    with pytest.raises(ValueError, match=r"uint8 or floating, not torch\.int64"):
        augment(clips().long(), Random(0, 0, range(B)))
    with pytest.raises(ValueError, match="6 clips and draws for 5 rows"):
        augment(clips(), Random(0, 0, range(5)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"crop_area": (0.0, 1.0)}, "crop_area is"),
        ({"crop_area": (0.5, 0.3)}, "crop_area is"),
        ({"crop_area": (0.5, 1.1)}, "crop_area is"),
        ({"crop_aspect": (2.0, 1.0)}, "crop_aspect is"),
        ({"crop_aspect": (0.0, 1.0)}, "crop_aspect is"),
        ({"flip": 1.5}, "flip is"),
    ],
)
def test_numbers_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipAugmentation(**bad)
