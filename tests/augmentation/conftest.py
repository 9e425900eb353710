from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def pictures() -> Callable[..., Tensor]:
    """Random images in [0, 1], float64 unless told."""

    def make(count: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(count * 1000 + height * 10 + width)
        return torch.rand(count, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)

    return make
