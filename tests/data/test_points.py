"""Points as samples, and the ring."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heliostat.data.loader import Loader, sequential
from heliostat.data.points import PointData, ring
from heliostat.errors import InputError
from heliostat_algorithms.algorithm import DataSpec


def test_the_ring_is_a_mixture_of_gaussians() -> None:
    data = ring("train", samples=40_000, modes=8, radius=2.0, deviation=0.02)
    assert data.labels is not None
    for mode in range(8):
        own = data.points[data.labels == mode]
        centre = 2 * np.array([np.cos(mode * np.pi / 4), np.sin(mode * np.pi / 4)])
        assert len(own) == pytest.approx(5000, abs=300)
        np.testing.assert_allclose(own.mean(axis=0), centre, atol=0.002)
        np.testing.assert_allclose(np.cov(own.T), 0.0004 * np.eye(2), atol=3e-5)
    fewer = ring("train", samples=100, modes=8, radius=2.0, deviation=0.02)
    np.testing.assert_array_equal(fewer.points, data.points[:100])
    assert not np.array_equal(ring("test", samples=100, modes=8, radius=2.0, deviation=0.02).points, fewer.points)


def test_batches_hold_points_as_they_are() -> None:
    data = ring("train", samples=50, modes=4, radius=1.0, deviation=0.1)
    assert data.spec() == DataSpec(image_shape=(1, 1, 2), classes=4, points=True)
    batch = Loader(data, batch_size=10, seed=0).batch(2)
    assert set(batch) == {"point", "label", "index"}
    assert batch["point"].dtype == torch.float32
    torch.testing.assert_close(batch["point"], torch.from_numpy(data.points[batch["index"]]))
    torch.testing.assert_close(
        torch.cat([b["point"] for b in sequential(data, batch_size=7)]), torch.tensor(data.points)
    )
    half = data.part(np.arange(0, 50, 2), "half")
    np.testing.assert_array_equal(half.points, data.points[::2])
    assert half.fingerprint != data.fingerprint


def test_what_is_no_set_of_points_is_refused() -> None:
    with pytest.raises(InputError, match="no points"):
        PointData(points=np.empty((0, 2), np.float32), labels=None, classes=(), name="none")
    with pytest.raises(ValueError, match="float32"):
        PointData(points=np.zeros((3, 2)), labels=None, classes=(), name="wide")  # type: ignore[arg-type]
