from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.collectives import rank, world_size
from heliostat_algorithms.objectives.koleo import koleo


def features(rows: int = 6, dim: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def reference(rows: list[list[float]]) -> float:
    """-1 / N * sum of log(distance to the nearest other point + 1e-8), on the unit sphere."""
    unit = [[value / math.hypot(*row) for value in row] for row in rows]
    logarithms = []
    for i, a in enumerate(unit):
        nearest = min(math.dist(a, b) for j, b in enumerate(unit) if j != i)
        logarithms.append(math.log(nearest + 1e-8))
    return -sum(logarithms) / len(rows)


@pytest.mark.parametrize(("rows", "dim"), [(2, 3), (6, 3), (9, 5), (40, 8)])
def test_the_estimate_follows_its_formula(rows: int, dim: int) -> None:
    x = features(rows, dim)
    assert koleo(x).item() == pytest.approx(reference(x.tolist()), rel=1e-12)


def test_lengths_do_not_matter() -> None:
    x = features()
    lengths = torch.tensor([0.1, 1.0, 3.0, 7.0, 20.0, 90.0], dtype=torch.float64).unsqueeze(1)
    assert koleo(x * lengths).item() == pytest.approx(koleo(x).item(), rel=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(koleo, (features().requires_grad_(),), rtol=1e-5)


def test_a_step_moves_neighbours_apart() -> None:
    x = F.normalize(features(12, 4) + 6.0, dim=1).requires_grad_()
    koleo(x).backward()
    assert x.grad is not None
    moved = (x - 0.01 * x.grad).detach()
    assert koleo(moved) < koleo(x)
    assert torch.pdist(F.normalize(moved, dim=1)).min() > torch.pdist(x).min()


def test_equal_rows_cost_much_and_do_not_explode() -> None:
    x = features(4)
    x[1] = x[0]
    x.requires_grad_()
    loss = koleo(x)
    loss.backward()
    assert loss.item() == pytest.approx(reference(x.tolist()), abs=0.5)  # rounding may part the two by 1e-16
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_neighbours_are_told_apart_where_cosines_round_to_one() -> None:
    """Features of an untrained network with LayerScale differ by 1e-4, their cosines by less than float32 holds."""
    x = torch.ones(1, 32, dtype=torch.float64) + 1e-4 * features(50, 32)
    assert koleo(x.float()).item() == pytest.approx(reference(x.tolist()), rel=1e-3)


def test_it_is_computed_in_float32_at_least() -> None:
    x = features(8, 16).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, halves = koleo(x), koleo(x.bfloat16())
    assert inside.dtype == halves.dtype == torch.float32
    assert torch.equal(inside, koleo(x))
    assert halves.item() == pytest.approx(koleo(x.bfloat16().double()).item(), rel=1e-5)


def test_a_single_row_has_no_neighbour() -> None:
    with pytest.raises(ValueError, match="a batch of 1 has none"):
        koleo(features(1))


def share() -> dict[str, Any]:
    rows = 8 // world_size()
    x = features(8)[rank() * rows : (rank() + 1) * rows].requires_grad_()
    loss = koleo(x)
    loss.backward()
    assert x.grad is not None
    return {"loss": loss.detach(), "gradient": x.grad}


@pytest.mark.parametrize("workers", [2, 4])
def test_neighbours_are_those_of_the_global_batch(workers: int, on_workers: Any) -> None:
    results = on_workers(share, workers)
    alone = share()
    assert sum(float(result["loss"]) for result in results) / workers == pytest.approx(float(alone["loss"]), rel=1e-12)
    gradient = torch.cat([result["gradient"] for result in results]) / workers  # as data-parallel training averages
    torch.testing.assert_close(gradient, alone["gradient"], rtol=1e-11, atol=1e-13)
