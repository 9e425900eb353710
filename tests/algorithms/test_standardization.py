from __future__ import annotations

import pytest
import torch

from heliostat_algorithms.backbones import ViTTiny
from heliostat_algorithms.backbones.standardization import Standardization


def test_each_channel_has_its_own_mean_and_deviation() -> None:
    for sides in ((3, 5), (2, 3, 5)):
        pixels = torch.rand(4, 2, *sides, dtype=torch.float64)
        found = Standardization((0.5, 0.25), (0.5, 2.0), 2, len(sides)).double()(pixels)
        assert torch.equal(found[:, 0], (pixels[:, 0] - 0.5) / 0.5)
        assert torch.equal(found[:, 1], (pixels[:, 1] - 0.25) / 2.0)


def test_one_number_counts_for_all_channels() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    assert torch.equal(Standardization(0.5, 0.25, 3, 2)(pixels), (pixels - 0.5) / 0.25)
    assert Standardization(0.0, 1.0, 3, 2)(pixels) is pixels


def test_a_standardised_network_sees_the_same_as_a_plain_one_of_standardised_pixels() -> None:
    options = {"patch_size": 4, "width": 8, "depth": 1, "heads": 2}
    plain = ViTTiny(**options).build(3, (8, 8)).double()
    standard = ViTTiny(**options, pixel_mean=(0.1, 0.2, 0.3), pixel_std=0.25).build(3, (8, 8)).double()
    assert standard.state_dict().keys() == plain.state_dict().keys()
    standard.load_state_dict(plain.state_dict())
    pixels = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    mean = torch.tensor([0.1, 0.2, 0.3]).double().view(1, 3, 1, 1)
    torch.testing.assert_close(standard(pixels), plain((pixels - mean) / 0.25))
    assert not torch.allclose(standard(pixels), plain(pixels))


def test_bad_values() -> None:
    with pytest.raises(ValueError, match="pixel_mean has 2 values, but images have 3 channels"):
        ViTTiny(patch_size=4, pixel_mean=(0.1, 0.2)).build(3, (8, 8))
    with pytest.raises(ValueError, match="pixel_std is 0"):
        ViTTiny(pixel_std=0.0)
