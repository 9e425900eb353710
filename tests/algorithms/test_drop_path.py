from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heliostat_algorithms.backbones.drop_path import Kept, add_branch, draw_keep, kept_rows, linear_rates, uniform_rates
from heliostat_algorithms.randomness import Random


def rows_of(first: int, last: int, step: int = 3, device: str = "cpu") -> Random:
    return Random(5, step, range(first, last), device)


def test_rates_of_a_linear_rule_grow_from_block_to_block() -> None:
    expected = [rate for rate in torch.linspace(0, 0.3, 12, dtype=torch.float64).tolist() for _ in range(2)]
    assert linear_rates(0.3, 12) == pytest.approx(expected, rel=1e-12)
    assert linear_rates(0.2, 3) == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2])
    assert linear_rates(0.2, 1) == [0, 0]
    assert uniform_rates(0.2, 3) == [0.2] * 6


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_out_of_range_are_refused(rate: float) -> None:
    for make in (linear_rates, uniform_rates):
        with pytest.raises(ValueError, match=f"rate is {rate}"):
            make(rate, 4)
    with pytest.raises(ValueError, match=f"rate is {rate}"):
        draw_keep(rows_of(0, 4), [0.0, rate])


def test_samples_leave_branches_out_at_their_rates() -> None:
    rates = [0.0, 0.1, 0.5, 0.9]
    keep = draw_keep(rows_of(0, 4000), rates)
    assert keep.shape == (4000, 4)
    for rate, factors in zip(rates, keep.T, strict=True):
        assert sorted(set(factors.tolist()) - {0.0}) == pytest.approx([1 / (1 - rate)], rel=1e-6)
        share = float((factors == 0).double().mean())
        assert share == pytest.approx(rate, abs=5 * (rate * (1 - rate) / 4000) ** 0.5)
    # Branches decide apart from one another, those of one block too.
    both = draw_keep(rows_of(0, 4000), [0.5, 0.5]) == 0
    assert float((both[:, 0] & both[:, 1]).double().mean()) == pytest.approx(0.25, abs=0.035)


@pytest.mark.parametrize(("batch", "rate", "kept"), [(10, 0.3, 7), (7, 0.5, 4), (8, 0.3, 6), (4, 0.95, 1), (6, 0.0, 6)])
@pytest.mark.parametrize("step", [0, 1, 17])
def test_subsets_keep_exactly_their_share_of_the_global_batch(batch: int, rate: float, kept: int, step: int) -> None:
    keep = draw_keep(rows_of(0, batch, step), [rate, rate, 0.0], "subset", batch)
    assert (keep[:, :2] != 0).sum(dim=0).tolist() == [kept, kept]
    assert sorted(set(keep[:, 0].tolist()) - {0.0}) == pytest.approx([batch / kept], rel=1e-6)
    assert keep.mean(dim=0).tolist() == pytest.approx([1, 1, 1], rel=1e-6)


def test_every_sample_is_kept_equally_often_in_subsets() -> None:
    steps = 600
    counts = sum((draw_keep(rows_of(0, 6, step), [0.5], "subset", 6) != 0).double() for step in range(steps))
    assert isinstance(counts, Tensor)
    assert (counts / steps - 0.5).abs().max() < 5 * 0.5 / steps**0.5
    # And pairs of samples too: with 3 of 6 kept, both are in 1/5 of the subsets.
    both = sum(int(draw_keep(rows_of(0, 6, step), [0.5], "subset", 6)[[0, 5], 0].all()) for step in range(steps))
    assert both / steps == pytest.approx(0.2, abs=5 * 0.4 / steps**0.5)


@pytest.mark.parametrize("mode", ["sample", "subset"])
def test_a_worker_draws_its_rows_of_the_whole(mode: Any) -> None:
    rates = [0.2, 0.5, 0.7]
    whole = draw_keep(rows_of(0, 12).within("view"), rates, mode, 12)
    for workers in (2, 3, 4):
        share = 12 // workers
        parts = [draw_keep(rows_of(r * share, (r + 1) * share).within("view"), rates, mode, 12) for r in range(workers)]
        assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, draw_keep(rows_of(0, 12).within("other view"), rates, mode, 12))
    assert not torch.equal(whole, draw_keep(rows_of(0, 12, step=4).within("view"), rates, mode, 12))


@pytest.mark.parametrize("mode", ["sample", "subset"])
def test_factors_are_on_the_cpu_whatever_the_device(mode: Any) -> None:
    on_cpu = draw_keep(rows_of(0, 6), [0.5, 0.2], mode, 6)
    elsewhere = draw_keep(rows_of(0, 6, device="meta"), [0.5, 0.2], mode, 6)
    assert elsewhere.device.type == "cpu"
    assert torch.equal(on_cpu, elsewhere)


def test_subsets_need_the_size_of_the_batch() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        draw_keep(rows_of(0, 4), [0.5], "subset")


KEEP = torch.tensor(
    [
        # all as it is, all scaled, some, one, none
        [1.0, 2.0, 0.0, 0.0, 0.0],
        [1.0, 2.0, 1.5, 0.0, 0.0],
        [1.0, 2.0, 0.0, 4.0, 0.0],
        [1.0, 2.0, 2.5, 0.0, 0.0],
    ]
)


@pytest.mark.parametrize("branch", range(5))
@pytest.mark.parametrize("outputs", [None, 1])
def test_a_branch_is_added_times_its_factor(branch: int, outputs: int | None) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(4, 2, 3, dtype=torch.float64)[:, :outputs]
    y = add_branch(x, lambda rows: layer(rows)[:, :outputs], kept_rows(KEEP, x)[branch], outputs)
    found = torch.autograd.grad((y * pull).sum(), [x, layer.weight, layer.bias])

    expected = (x + KEEP[:, branch].double().view(4, 1, 1) * layer(x))[:, :outputs]
    wanted = torch.autograd.grad((expected * pull).sum(), [x, layer.weight, layer.bias])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)  # zeros, not missing, where nobody goes through
    dropped = KEEP[:, branch] == 0
    assert torch.equal(y[dropped], x[:, :outputs][dropped])
    assert torch.equal(found[0][:, :outputs][dropped], pull[dropped])


def test_only_kept_samples_are_computed() -> None:
    x = torch.arange(4, dtype=torch.float64).view(4, 1, 1)
    seen: list[list[float]] = []

    def branch(rows: Tensor) -> Tensor:
        seen.append(rows.flatten().tolist())
        return rows

    for kept in kept_rows(KEEP, x):
        add_branch(x, branch, kept)
    assert seen == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 3], [2], [0]]  # one sample times 0 where none is kept


def test_factors_that_are_not_on_the_cpu_are_not_looked_at() -> None:
    """On the meta device there is nothing to look at."""
    plan = kept_rows(KEEP.to("meta"), torch.empty(4, 2, 3, dtype=torch.float64, device="meta"))
    for kept in plan:
        assert kept is not None
        assert kept.rows is None
        assert kept.factors.shape == (4, 1, 1)
        assert kept.factors.dtype == torch.float64
    x = torch.randn(4, 2, 3)
    y = add_branch(x, torch.sin, Kept(None, KEEP[:, 2].view(4, 1, 1)))
    torch.testing.assert_close(y, x + KEEP[:, 2].view(4, 1, 1) * x.sin())


def test_half_precision_branches_are_added_in_the_precision_of_the_tokens() -> None:
    x = torch.randn(4, 2, 3)
    for kept in kept_rows(KEEP, x):
        y = add_branch(x, lambda rows: rows.bfloat16(), kept)
        assert y.dtype == torch.float32
