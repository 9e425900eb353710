from __future__ import annotations

import math
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from heliostat_algorithms.collectives import rank, world_size
from heliostat_algorithms.objectives.info_nce import batch_info_nce, queue_info_nce

Rows: TypeAlias = list[list[float]]


def vectors(count: int, dim: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) * 3


def unit(row: list[float]) -> list[float]:
    return [value / math.hypot(*row) for value in row]


def similarity(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(unit(a), unit(b), strict=True))


def reference(queries: Rows, candidates: list[Rows], temperature: float) -> tuple[float, float]:
    """Mean loss and top-1 accuracy; each query has candidates of its own, the first of which is its key."""
    losses, hits = [], 0
    for q, keys in zip(queries, candidates, strict=True):
        scores = [similarity(q, k) / temperature for k in keys]
        losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[0])
        hits += all(scores[0] > s for s in scores[1:])
    return sum(losses) / len(losses), hits / len(queries)


def queue_reference(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> tuple[float, float]:
    candidates = [[key, *negatives.tolist()] for key in k.tolist()]
    return reference(q.tolist(), candidates, temperature)


def batch_reference(q: Tensor, k: Tensor, temperature: float) -> tuple[float, float]:
    keys = k.tolist()
    candidates = [[keys[i], *keys[:i], *keys[i + 1 :]] for i in range(len(keys))]
    return reference(q.tolist(), candidates, temperature)


def unit_rows(x: Tensor) -> Tensor:
    return torch.tensor([unit(row) for row in x.tolist()], dtype=x.dtype)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize(("count", "negatives"), [(1, 1), (5, 7), (6, 40)])
def test_the_loss_against_a_queue_follows_equation_1(count: int, negatives: int, temperature: float) -> None:
    q, queue = vectors(count), unit_rows(vectors(negatives, seed=2))
    k = q + vectors(count, seed=1)
    loss, metrics = queue_info_nce(q, k, queue, temperature)
    expected, top1 = queue_reference(q, k, queue, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert metrics["contrastive_top1"].item() == pytest.approx(top1)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_loss_within_a_batch_follows_algorithm_1(count: int, temperature: float) -> None:
    q = vectors(count)
    k = q + vectors(count, seed=1)
    loss, metrics = batch_info_nce(q, k, temperature)
    expected, top1 = batch_reference(q, k, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert metrics["contrastive_top1"].item() == pytest.approx(top1)


def test_top1_counts_queries_whose_key_is_nearer_than_all_others() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    exchanged = eye[[1, 0, 2, 3]]
    assert batch_info_nce(eye, eye, 0.1)[1]["contrastive_top1"].item() == 1.0
    assert batch_info_nce(eye, exchanged, 0.1)[1]["contrastive_top1"].item() == 0.5
    queue = -eye
    assert queue_info_nce(eye, eye, queue, 0.1)[1]["contrastive_top1"].item() == 1.0
    assert queue_info_nce(eye, -eye, eye, 0.1)[1]["contrastive_top1"].item() == 0.0


def test_a_collapse_costs_the_logarithm_of_the_candidates_and_finds_nothing() -> None:
    same = torch.ones(5, 3, dtype=torch.float64)
    loss, metrics = queue_info_nce(same, same, unit_rows(torch.ones(8, 3, dtype=torch.float64)), 0.2)
    assert loss.item() == pytest.approx(math.log(9))
    assert metrics["contrastive_top1"].item() == 0
    loss, metrics = batch_info_nce(same, same, 0.2)
    assert loss.item() == pytest.approx(math.log(5))
    assert metrics["contrastive_top1"].item() == 0


def test_gradients_reach_queries_alone_and_are_those_of_finite_differences() -> None:
    q, k = vectors(4).requires_grad_(), vectors(4, seed=1).requires_grad_()
    queue = unit_rows(vectors(6, seed=2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: queue_info_nce(x, k, queue, 0.2)[0], (q,), rtol=1e-5)
    assert torch.autograd.gradcheck(lambda x: batch_info_nce(x, k, 0.2)[0], (q,), rtol=1e-5)
    for loss, metrics in (queue_info_nce(q, k, queue, 0.2), batch_info_nce(q, k, 0.2)):
        loss.backward()
        assert not metrics["contrastive_top1"].requires_grad
    assert k.grad is None
    assert queue.grad is None


def test_lengths_of_queries_and_keys_do_not_matter() -> None:
    q, k, queue = vectors(4), vectors(4, seed=1), unit_rows(vectors(6, seed=2))
    scales = torch.tensor([1e-3, 1.0, 7.0, 1e3], dtype=torch.float64).unsqueeze(1)
    for one, other in (
        (queue_info_nce(q, k, queue, 0.1), queue_info_nce(q * scales, k / scales, queue, 0.1)),
        (batch_info_nce(q, k, 0.1), batch_info_nce(q * scales, k / scales, 0.1)),
    ):
        assert one[0].item() == pytest.approx(other[0].item(), rel=1e-10)


def test_similarities_are_float32_under_autocast_and_nothing_overflows() -> None:
    q, k, queue = (x.float() for x in (vectors(6, 16), vectors(6, 16, 1), unit_rows(vectors(9, 16, 2))))
    for loss in (lambda a, b: queue_info_nce(a, b, queue, 0.2)[0], lambda a, b: batch_info_nce(a, b, 0.2)[0]):
        outside = loss(q, k)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = loss(q, k)
            halves = loss(q.bfloat16(), k.bfloat16())
        assert inside.dtype == halves.dtype == torch.float32
        assert torch.equal(inside, outside)
        rounded = loss(q.bfloat16().double(), k.bfloat16().double())
        assert halves.item() == pytest.approx(rounded.item(), rel=1e-4)  # only the inputs were rounded
    eye = torch.eye(8).requires_grad_()
    loss, _ = queue_info_nce(eye, -eye, torch.eye(8), 0.005)  # similarities of -1 and 1 at exp(+-200)
    loss.backward()
    assert loss.item() == pytest.approx(400, rel=1e-5)
    assert eye.grad is not None
    assert eye.grad.isfinite().all()


def share() -> dict[str, Any]:
    """Loss and gradient of this worker's queries."""
    q, k = (x.chunk(world_size())[rank()] for x in (vectors(8), vectors(8) + vectors(8, seed=1)))
    q = q.clone().requires_grad_()
    loss, metrics = batch_info_nce(q, k, 0.2)
    loss.backward()
    return {"loss": loss.detach(), "gradient": q.grad, **metrics}


def test_keys_of_all_workers_are_candidates(on_workers: Any) -> None:
    results, whole = on_workers(share, 2), share()
    expected, top1 = batch_reference(vectors(8), vectors(8) + vectors(8, seed=1), 0.2)
    assert sum(r["loss"].item() for r in results) / 2 == pytest.approx(expected, rel=1e-10)
    assert sum(r["contrastive_top1"].item() for r in results) / 2 == pytest.approx(top1)
    # Each worker's mean is over half as many queries.
    torch.testing.assert_close(torch.cat([r["gradient"] for r in results]) / 2, whole["gradient"], rtol=1e-10, atol=0)
