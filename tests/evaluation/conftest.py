"""Shared by the tests of evaluators: small labelled sets with a known difficulty."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from heliostat_algorithms.evaluation import Features

Blobs = Callable[..., Features]


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
