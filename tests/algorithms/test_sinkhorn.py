from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliostat_algorithms.collectives import rank
from heliostat_algorithms.objectives.sinkhorn import sinkhorn_knopp

HELD = (range(3), range(3, 3), range(3, 7))
"""Rows of the global batch that each of three workers holds: different numbers, one has none."""


def logits(rows: int, prototypes: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, prototypes, generator=generator, dtype=torch.float64)


def reference(scores: NDArray[np.float64], temperature: float, iterations: int) -> NDArray[np.float64]:
    """SwAV's algorithm as the papers write it: a matrix of total 1, whose K rows are scaled to sums of 1 / K and whose
    B columns to sums of 1 / B; in the end the columns are scaled to 1."""
    samples, prototypes = scores.shape
    Q = [[math.exp(scores[b, k] / temperature) for b in range(samples)] for k in range(prototypes)]
    total = sum(map(sum, Q))
    Q = [[value / total for value in row] for row in Q]
    for _ in range(iterations):
        Q = [[value / sum(row) / prototypes for value in row] for row in Q]
        columns = [sum(Q[k][b] for k in range(prototypes)) for b in range(samples)]
        Q = [[Q[k][b] / columns[b] / samples for b in range(samples)] for k in range(prototypes)]
    return np.array(Q).T * samples


@pytest.mark.parametrize("iterations", [1, 2, 3, 7])
@pytest.mark.parametrize(("rows", "prototypes"), [(1, 4), (6, 3), (5, 9)])
def test_scaling_follows_the_papers_algorithm(rows: int, prototypes: int, iterations: int) -> None:
    z = logits(rows, prototypes)
    found = sinkhorn_knopp(z, 0.3, iterations)
    np.testing.assert_allclose(found.numpy(), reference(z.numpy(), 0.3, iterations), rtol=1e-12)


def test_three_iterations_are_the_default() -> None:
    z = logits(6, 5)
    np.testing.assert_allclose(sinkhorn_knopp(z, 0.2).numpy(), reference(z.numpy(), 0.2, 3), rtol=1e-12)


def test_rows_are_distributions_and_columns_become_equal() -> None:
    z = logits(12, 4)
    few, many = sinkhorn_knopp(z, 0.3), sinkhorn_knopp(z, 0.3, 2000)
    for found in (few, many):
        torch.testing.assert_close(found.sum(dim=1), torch.ones(12, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(many.sum(dim=0), torch.full((4,), 3.0, dtype=torch.float64), rtol=1e-6, atol=0)
    assert (few.sum(dim=0) - 3).abs().max() > 1e-2


def test_what_all_samples_share_is_removed() -> None:
    z = logits(6, 5)
    preferred = z + torch.tensor([3.0, 0.0, -1.0, 0.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn_knopp(preferred, 0.2), sinkhorn_knopp(z, 0.2), rtol=1e-10, atol=1e-13)
    alike = z[:1].expand(6, 5)
    torch.testing.assert_close(sinkhorn_knopp(alike, 0.04), torch.full((6, 5), 0.2, dtype=torch.float64))


def test_logits_of_any_size_give_distributions_in_float32() -> None:
    z = logits(8, 16, scale=40.0).float()  # exp(40 / 0.04) overflows, and rows differ by as much
    z[3] -= 500
    found = sinkhorn_knopp(z, 0.04)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(8))
    exact = sinkhorn_knopp(logits(8, 16), 0.04)
    torch.testing.assert_close(sinkhorn_knopp(logits(8, 16).float(), 0.04), exact.float(), rtol=1e-4, atol=1e-7)


def test_no_rows_are_no_rows() -> None:
    assert sinkhorn_knopp(torch.empty(0, 5), 0.1).shape == (0, 5)


def test_targets_carry_no_gradient_and_are_float32_under_autocast() -> None:
    z = logits(6, 5).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, halves = sinkhorn_knopp(z, 0.1), sinkhorn_knopp(z.bfloat16(), 0.1)
    assert not inside.requires_grad
    assert inside.dtype == halves.dtype == torch.float32
    assert torch.equal(inside, sinkhorn_knopp(z, 0.1))


def test_at_least_one_iteration_is_needed() -> None:
    with pytest.raises(ValueError, match="0 iterations"):
        sinkhorn_knopp(logits(3, 4), 0.1, 0)


def share() -> dict[str, Any]:
    rows = HELD[rank()]
    return {"targets": sinkhorn_knopp(logits(7, 5)[rows.start : rows.stop], 0.2)}


def test_workers_with_different_numbers_of_rows_scale_the_global_batch(on_workers: Any) -> None:
    found = torch.cat([result["targets"] for result in on_workers(share, 3)])
    np.testing.assert_allclose(found.numpy(), reference(logits(7, 5).numpy(), 0.2, 3), rtol=1e-12)
