"""Shared by the tests of evaluators: small labelled sets with a known difficulty."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from heliostat.data.images import ImageData
from heliostat.training.evaluation import SharedSamples
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.evaluation import Features

Blobs = Callable[..., Features]
MakeSamples = Callable[[Tensor, Tensor | None, int], SharedSamples]


@pytest.fixture
def blobs() -> Blobs:
    """Makes a set of unit Gaussian clouds whose centres are ``distance`` long and the same for every ``seed``."""

    def make(samples: int, *, classes: int = 7, dimension: int = 16, distance: float = 3.0, seed: int = 0) -> Features:
        centres = torch.randn(classes, dimension, generator=torch.Generator().manual_seed(99))
        centres = distance * torch.nn.functional.normalize(centres, dim=-1)
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(samples) % classes
        values = centres[labels] + torch.randn(samples, dimension, generator=generator)
        return Features(values, labels, classes)

    return make


@pytest.fixture
def noise() -> Blobs:
    """Makes a set whose labels have nothing to do with its features."""

    def make(samples: int, *, classes: int = 7, dimension: int = 16, seed: int = 0) -> Features:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(classes, (samples,), generator=generator)
        return Features(torch.randn(samples, dimension, generator=generator), labels, classes)

    return make


@pytest.fixture
def samples() -> MakeSamples:
    """Makes a set of images (N, C, H, W) uint8 with labels (N,), as evaluators of networks are given it."""

    def make(images: Tensor, labels: Tensor | None, classes: int) -> SharedSamples:
        names = () if labels is None else tuple(map(str, range(classes)))
        known = None if labels is None else labels.numpy()
        data = ImageData(images=images.contiguous().numpy(), labels=known, classes=names, name="made up")
        return SharedSamples(data, SilentRuntime(torch.device("cpu")))

    return make
