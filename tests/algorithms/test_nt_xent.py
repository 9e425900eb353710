from __future__ import annotations

import math
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from heliostat_algorithms.objectives.nt_xent import nt_xent

Rows: TypeAlias = list[list[float]]


def views(count: int = 5, dim: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, dim, generator=generator, dtype=torch.float64) * 3
    return first, first + torch.randn(count, dim, generator=generator, dtype=torch.float64)


def reference(first: Rows, second: Rows, temperature: float) -> tuple[list[float], float, float]:
    """l(i, j) of each anchor, first views before second ones; top-1 accuracy; mean entropy, by equation 1."""
    z = first + second
    count = len(first)

    def similarity(u: list[float], v: list[float]) -> float:
        return sum(a * b for a, b in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v))

    losses, hits, entropies = [], 0, []
    for i in range(2 * count):
        positive = (i + count) % (2 * count)
        exponentials = {k: math.exp(similarity(z[i], z[k]) / temperature) for k in range(2 * count) if k != i}
        total = sum(exponentials.values())
        losses.append(-math.log(exponentials[positive] / total))
        hits += max(exponentials, key=lambda k: exponentials[k]) == positive
        entropies.append(-sum(e / total * math.log(e / total) for e in exponentials.values()))
    return losses, hits / (2 * count), sum(entropies) / len(entropies)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_loss_and_its_metrics_follow_equation_1(count: int, temperature: float) -> None:
    first, second = views(count)
    loss, metrics = nt_xent(first, second, temperature)
    losses, top1, entropy = reference(first.tolist(), second.tolist(), temperature)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-10, abs=1e-12)
    assert metrics["contrastive_top1"].item() == pytest.approx(top1)
    assert metrics["contrastive_entropy"].item() == pytest.approx(entropy, rel=1e-10, abs=1e-12)


def test_the_official_loss_is_twice_as_large() -> None:
    first, second = views(4)
    losses, _, _ = reference(first.tolist(), second.tolist(), 0.1)
    official = sum(losses[:4]) / 4 + sum(losses[4:]) / 4
    assert official == pytest.approx(2 * nt_xent(first, second, 0.1)[0].item(), rel=1e-10)


def test_top1_counts_anchors_whose_positive_is_nearest() -> None:
    first = torch.eye(4, dtype=torch.float64)
    second = first.clone()
    second[[0, 1]] = second[[1, 0]]  # the first two images' views are exchanged
    assert nt_xent(first, first, 0.1)[1]["contrastive_top1"].item() == 1.0
    assert nt_xent(first, second, 0.1)[1]["contrastive_top1"].item() == 0.5


def test_gradients_are_those_of_finite_differences() -> None:
    first, second = views(3)
    first.requires_grad_()
    second.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.2)[0], (first, second), rtol=1e-5)


def test_metrics_carry_no_gradient() -> None:
    first, second = views(3)
    loss, metrics = nt_xent(first.requires_grad_(), second, 0.2)
    assert loss.requires_grad
    assert not any(metric.requires_grad for metric in metrics.values())


def test_lengths_do_not_matter_and_collapse_costs_the_logarithm_of_the_candidates() -> None:
    first, second = views(5)
    scales = torch.tensor([1e-3, 1.0, 7.0, 50.0, 1e3], dtype=torch.float64).unsqueeze(1)
    scaled = nt_xent(first * scales, second / scales, 0.1)[0]
    assert scaled.item() == pytest.approx(nt_xent(first, second, 0.1)[0].item(), rel=1e-10)
    same = torch.ones(5, 3, dtype=torch.float64)
    loss, metrics = nt_xent(same, same, 0.1)
    assert loss.item() == pytest.approx(math.log(9))
    assert metrics["contrastive_entropy"].item() == pytest.approx(math.log(9))


def test_a_low_temperature_overflows_nowhere() -> None:
    first = torch.eye(8).requires_grad_()
    loss, metrics = nt_xent(first, -torch.eye(8), 0.005)  # the positive is the least likely, at exp(-200)
    loss.backward()
    assert loss.item() == pytest.approx(200 + math.log(14), rel=1e-5)  # 14 orthogonal candidates
    assert first.grad is not None
    assert first.grad.isfinite().all()
    assert metrics["contrastive_entropy"].isfinite()


def test_similarities_are_float32_under_autocast() -> None:
    first, second = (view.float() for view in views(6, 16))
    outside = nt_xent(first, second, 0.5)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(first, second, 0.5)[0]
        halves, _ = nt_xent(first.bfloat16(), second.bfloat16(), 0.5)
    assert inside.dtype == halves.dtype == torch.float32
    assert torch.equal(inside, outside)
    rounded = nt_xent(first.bfloat16().double(), second.bfloat16().double(), 0.5)[0]
    assert halves.item() == pytest.approx(rounded.item(), rel=1e-4)  # only the inputs were rounded
